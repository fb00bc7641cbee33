"""Texts of the console's screens, widgets and dialogs, of the first page and the settings: English -> Chinese."""

# fmt: off
SCREENS: dict[str, str] = {
    # titles
    "Runs": "运行", "Launch": "启动", "Monitor": "监控", "Compare": "对比", "First page": "首页", "Everywhere": "所有页面",
    # bars and help
    "{count} live": "{count} 个运行中",
    "This pane": "当前窗格", "Keys": "按键", "enter or a click runs it, esc closes": "enter 或点击执行，esc 关闭",
    "Letters are keys outside of fields; esc leaves a field. The grey names are for your own keys: comma opens the settings.":
        "在输入框之外，字母就是按键；esc 离开输入框。灰色的名称用于自定义按键：逗号打开设置。",
    "{action}: not available now": "{action}：现在不可用",
    "the form would be lost: start it, save its plan or reset it first": "表单内容会丢失：请先启动、保存方案或重置",
}
