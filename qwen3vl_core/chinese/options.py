"""Options: English help -> (the word beside the flag, the help); then groups, units and the words around them."""

# fmt: off
OPTIONS: dict[str, tuple[str, str]] = {
    # finetune: model
    "Checkpoint to start from: torch_dist, or an HF folder directly": ("起始检查点", "训练的起点：torch_dist 检查点，或直接用 HF 目录"),
    "Refuse the checkpoint unless it is this size": ("模型规模", "检查点不是这个规模就拒绝"),
    "Parts to freeze: any of vision,projector,language": ("冻结", "要冻结的部分：vision,projector,language 中的任意几个"),
    "Train LoRA adapters of this rank and freeze the weights; 0: train the weights": ("LoRA 秩", "训练这个秩的 LoRA 适配器并冻结权重；0：训练权重本身"),
    "LoRA alpha: an adapter's output is scaled by alpha / rank; default: the rank": ("LoRA alpha", "LoRA alpha：适配器的输出乘以 alpha / 秩；默认等于秩"),
    "Dropout of an adapter's input": ("LoRA dropout", "适配器输入的 dropout"),
    "Layers that get an adapter, those of experts too: any of linear_qkv,linear_proj,linear_fc1,linear_fc2":
        ("LoRA 目标层", "加适配器的层，专家的也算：linear_qkv,linear_proj,linear_fc1,linear_fc2 中的任意几个"),
    "Start the adapters from a PEFT folder or a LoRA run, whose rank, alpha and layers they then have; --load is the model beside it":
        ("初始适配器", "从 PEFT 目录或某个 LoRA 运行的适配器开始，沿用其秩、alpha 和目标层；--load 是与它配套的模型"),
    "Adapters in the vision tower and the projector too, not in the language model alone": ("视觉 LoRA", "视觉塔和 projector 也加适配器，而不只是语言模型"),
    "Precision of weights and activations; fp8: bf16 with the matrix products of the language layers in fp8":
        ("精度", "权重和激活的精度；fp8：bf16，但语言层的矩阵乘用 fp8"),
    "How fp8 is scaled: tensorwise by each tensor's current maximum, delayed by the previous step's, blockwise by 128 x 128":
        ("fp8 缩放", "fp8 的缩放方式：tensorwise 用每个张量当前的最大值，delayed 用上一步的，blockwise 按 128 x 128 分块"),
    "Replay forward and backward of a micro batch as one CUDA graph, where that is possible": ("CUDA graph", "可行时把一个 micro batch 的前向和反向作为一个 CUDA graph 重放"),
    "Attention kernels on a GPU: flash, cuDNN's fused ones, or whichever Transformer Engine takes":
        ("注意力内核", "GPU 上的注意力内核：flash、cuDNN 的 fused，或由 Transformer Engine 选择"),
    # data
    "Dataset made by qwen3vl prepare": ("训练数据", "由 qwen3vl prepare 生成的数据集"),
    "Dataset for evaluation; else the validation split of --train-data": ("验证数据", "评估用的数据集；不给则用 --train-data 的验证集"),
    "Longest sample; longer ones are skipped and counted": ("序列长度", "最长样本；更长的跳过并计数"),
    "Pad every row to at least this length, so that shapes stay the same; 0: to the longest row of its micro batch":
        ("填充长度", "每行至少填充到这个长度，使形状不变；0：填充到所在 micro batch 的最长行"),
    "Pack samples into rows of --seq-length; a micro batch is then one row": ("打包", "把样本打包成长度为 --seq-length 的行；此时一个 micro batch 就是一行"),
    "Smallest area a picture is resized to; else the checkpoint's": ("最小像素", "图片缩放后的最小面积；不给则用检查点的设置"),
    "Largest area a picture is resized to; else the checkpoint's": ("最大像素", "图片缩放后的最大面积；不给则用检查点的设置"),
    "Frames per second of video; else the checkpoint's": ("视频帧率", "视频每秒取几帧；不给则用检查点的设置"),
    "Largest number of frames of a video; else the checkpoint's": ("最多帧数", "一个视频最多取几帧；不给则用检查点的设置"),
    "Largest area of all frames of a video together; else the checkpoint's": ("视频像素", "一个视频所有帧合计的最大面积；不给则用检查点的设置"),
    "Most tokens of a sample's pictures and videos, which are scaled down to fit; else no limit": ("视觉 token", "一个样本的图片和视频最多占多少 token，超出则缩小；不给则不限"),
    "Deal the samples of a step so that ranks and micro batches have even numbers of patches and tokens":
        ("负载均衡", "分配一步内的样本，使各 rank 和 micro batch 的 patch 数与 token 数均衡"),
    "Loader processes of each rank; else 2 to 8 by cores with GPUs, none without": ("加载进程", "每个 rank 的数据加载进程数；不给时有 GPU 则按核数取 2 到 8，没有则为 0"),
    "Stop if more than this fraction of the samples could not be used": ("跳过上限", "无法使用的样本超过这个比例就停止"),
    # batch and schedule
    "Samples of one data-parallel rank in one pass": ("微批大小", "一个数据并行 rank 一次前向的样本数"),
    "Samples of one optimizer step": ("全局批大小", "一次优化器更新的样本数"),
    "Optimizer steps": ("训练步数", "优化器更新的步数"),
    "Highest learning rate": ("学习率", "最高学习率"),
    "Learning rate at the end of the cosine": ("最低学习率", "余弦衰减结束时的学习率"),
    "Steps of linear warmup": ("预热步数", "学习率线性预热的步数"),
    "Steps after which the learning rate has fallen to --min-lr; 0: those of the run": ("衰减步数", "学习率在多少步后降到 --min-lr；0：等于训练步数"),
    "Decoupled weight decay": ("权重衰减", "解耦的权重衰减"),
    "Adam's first moment": ("Adam β1", "Adam 一阶矩的系数"),
    "Adam's second moment": ("Adam β2", "Adam 二阶矩的系数"),
    "Adam's epsilon": ("Adam ε", "Adam 的 epsilon"),
    "Largest gradient norm; 0: no clipping": ("梯度裁剪", "最大梯度范数；0：不裁剪"),
    "Weight of the experts' load balancing loss; else the checkpoint's": ("均衡损失", "专家负载均衡损失的权重；不给则用检查点的设置"),
    "Seed of the data order and of dropout": ("随机种子", "数据顺序和 dropout 的随机种子"),
    "A loss this many robust deviations above the median of the last steps is a loss spike; 0: no detection":
        ("尖峰阈值", "损失比最近若干步的中位数高出这么多个稳健偏差，就算损失尖峰；0：不检测"),
    "Skip the update of a step whose loss is a spike": ("跳过尖峰", "损失为尖峰的那一步跳过更新"),
    "Stop after this many skipped steps in a row": ("连续坏步", "连续跳过这么多步后停止"),
    # layout
    "Where it runs. dsw: this machine; dlc: every node of a cluster job runs the same command": ("运行环境", "在哪里运行。dsw：本机；dlc：集群任务的每个节点执行同一条命令"),
    "Processes on this machine; 0: one per GPU, or one on a CPU": ("进程数", "本机的进程数；0：每个 GPU 一个，没有 GPU 则一个"),
    "GPUs of this machine to use, by index as nvidia-smi lists them: 4,5,6,7; free: as many free ones as it has processes":
        ("GPU 编号", "使用本机的哪些 GPU，按 nvidia-smi 的编号：4,5,6,7；free：按进程数取空闲的"),
    "Tensor parallel size": ("张量并行", "张量并行大小"),
    "Pipeline parallel size": ("流水线并行", "流水线并行大小"),
    "Context parallel size": ("上下文并行", "上下文并行大小"),
    "Expert parallel size": ("专家并行", "专家并行大小"),
    "Tensor parallel size of the experts": ("专家张量并行", "专家的张量并行大小"),
    "Model chunks of a pipeline stage (interleaved schedule)": ("虚拟流水线", "每个流水线阶段的模型块数（交错调度）"),
    "Language layers of the first pipeline stage; 0: as many as any other": ("首阶段层数", "第一个流水线阶段的语言层数；0：与其他阶段相同"),
    "Split the sequence between tensor parallel ranks too": ("序列并行", "张量并行的各 rank 之间也切分序列"),
    "Split the optimizer state between data parallel ranks (ZeRO-1)": ("ZeRO-1", "优化器状态在数据并行的各 rank 之间切分（ZeRO-1）"),
    "Fraction of the weights whose optimizer state and update are on the host": ("优化器卸载", "优化器状态和更新放在主机内存的权重比例"),
    "Precision in which gradients are added up and reduced; bf16 halves their memory and rounds every sum":
        ("梯度精度", "梯度累加和归约的精度；bf16 占用减半，但每次求和都舍入"),
    "Let the distributed optimizer read gradients in --main-grads-dtype and keep moments in --exp-avg-dtype and --exp-avg-sq-dtype":
        ("精度感知", "让分布式优化器按 --main-grads-dtype 读取梯度，按 --exp-avg-dtype 和 --exp-avg-sq-dtype 保存动量"),
    "Precision in which the precision-aware optimizer keeps Adam's first moment between updates": ("一阶矩精度", "精度感知优化器保存 Adam 一阶矩的精度"),
    "Precision in which the precision-aware optimizer keeps Adam's second moment between updates": ("二阶矩精度", "精度感知优化器保存 Adam 二阶矩的精度"),
    "Reduce gradients between data parallel ranks during the backward pass": ("梯度重叠", "在反向过程中就归约数据并行各 rank 的梯度"),
    "Gather the distributed optimizer's new weights during the next forward pass": ("参数重叠", "在下一次前向过程中收集分布式优化器更新后的权重"),
    "Activation recomputation: sel recomputes the language MLPs, full recomputes whole layers, offload keeps activations on the host":
        ("重计算", "激活重计算：sel 重算语言层的 MLP，full 重算整层，offload 把激活放到主机内存"),
    "With full: layers recomputed together, 0: one; with offload: layers kept on the host, 0: all but the last":
        ("重计算层数", "full 时：一起重算的层数，0：一层；offload 时：放到主机的层数，0：除最后一层外全部"),
    # record
    "Go on from another run's checkpoint with its optimizer, schedule and place in the data, in any layout; --load is then its own":
        ("续训", "从另一个运行的检查点接着训练，包括优化器、训练计划和数据位置，并行布局可变；--load 沿用它的"),
    "Checkpoint every N steps; 0: at the end only": ("保存间隔", "每 N 步保存检查点；0：只在结束时"),
    "Checkpoints to keep, the newest; 0: all": ("保留个数", "保留最新的几个检查点；0：全部"),
    "Also keep those whose step is a multiple of N; 0: only those of --keep": ("长期保留", "另外保留步数是 N 的倍数的检查点；0：只按 --keep"),
    "Write checkpoints while training continues; holds a copy of the weights in memory": ("异步保存", "训练不停，后台写检查点；内存里会多一份权重"),
    "Evaluate every N steps; 0: never": ("评估间隔", "每 N 步评估一次；0：从不"),
    "Global batches of one evaluation": ("评估批数", "一次评估的全局批数"),
    "Write captions of --sample-images every N steps; 0: never": ("描述间隔", "每 N 步为 --sample-images 生成图像描述；0：从不"),
    "Pictures, or folders of pictures, to write captions of": ("示例图片", "要生成描述的图片或图片目录"),
    "Prompt for them": ("提示词", "生成这些描述的提示词"),
    "Maximum length of those captions": ("描述长度", "这些描述的最大长度"),
    "Send the curves to this project of Weights & Biases too, if wandb is installed": ("W&B 项目", "装了 wandb 时，曲线也发到 Weights & Biases 的这个项目"),
    "Send the curves to this project of SwanLab too, if swanlab is installed": ("SwanLab", "装了 swanlab 时，曲线也发到 SwanLab 的这个项目"),
    "Write metrics every N steps": ("日志间隔", "每 N 步写一次指标"),
    "Name of the run; its id is made from it": ("运行名称", "运行的名称；编号由它生成"),
    "Copy checkpoints to this folder in the background, compared byte by byte; runs resume can take them from there":
        ("镜像目录", "在后台把检查点复制到这个目录并逐字节比较；runs resume 可以从那里恢复"),
    "Copy each N-th checkpoint, and the last one": ("镜像间隔", "每隔 N 个检查点复制一个，最后一个必定复制"),
    "Copies to keep, the newest; 0: all": ("镜像个数", "保留最新的几份副本；0：全部"),
    # interruptions
    "Say when the run ends, fails, stalls or its loss is NaN: webhooks of DingTalk, Feishu, WeCom or Slack, any URL for JSON, or env:NAME; none: nobody, whatever the settings say":
        ("通知", "运行结束、失败、卡住或损失为 NaN 时通知：钉钉、飞书、企业微信或 Slack 的 webhook，接收 JSON 的任意 URL，或 env:NAME；none：谁也不通知，无视设置"),
    "Run this program for the same, with the message as JSON on its standard input; no shell reads it": ("通知命令", "同样情况下执行这个程序，消息以 JSON 写入其标准输入；不经过 shell"),
    "Restart a failed run automatically this many times, all processes together; it resumes from the newest complete checkpoint":
        ("重启次数", "失败后自动重启的次数，所有进程一起；从最新的完整检查点恢复"),
    "Wait for GPUs that are in use; auto: in the background, while --foreground starts at once":
        ("排队", "GPU 被占用时排队等待；auto：后台运行排队，--foreground 立即启动"),
    "Wait this long before the first restart, twice as long before each further one, at most 5 minutes": ("重启等待", "第一次重启前等待多久，之后每次加倍，最多 5 分钟"),
    "Kill a run that makes no more steps, so that it is restarted; needs --max-restarts": ("卡住重启", "运行不再前进时终止它以便重启；需要 --max-restarts"),
    "How long a rank waits for the others in any collective, before it fails": ("通信超时", "集合通信中一个 rank 等待其他 rank 多久后失败"),
    "Kill the processes this long after a request to stop; a checkpoint that is being written is waited for": ("停止宽限", "请求停止后过多久强制结束进程；正在写的检查点会等它写完"),
    "Save and stop after this time, restarts included: 11h30m, 90m, 3600 (seconds) or 11:30:00": ("限时停止", "到这个时间就保存并停止，含重启：11h30m、90m、3600（秒）或 11:30:00"),
    "Signal by which a scheduler announces the end of a job: save a checkpoint at the next step (Slurm: --signal=USR1@300)":
        ("保存信号", "调度器预告任务结束的信号：在下一步保存检查点（Slurm：--signal=USR1@300）"),
    # download
    "What to download: model or dataset": ("类型", "下载什么：model 模型，或 dataset 数据集"),
    "Name on the hub, OWNER/NAME": ("名称", "在平台上的名称，OWNER/NAME"),
    "The hub; auto: Hugging Face, or ModelScope where that cannot be reached; HF_ENDPOINT and MODELSCOPE_DOMAIN set another address":
        ("来源", "下载平台；auto：Hugging Face，连不上则用 ModelScope；HF_ENDPOINT 和 MODELSCOPE_DOMAIN 可改地址"),
    "Folder to write the files to": ("目标目录", "文件写到哪个目录"),
    "Branch, tag or commit; default: the hub's main branch": ("版本", "分支、标签或提交；默认是平台的主分支"),
    "Only files whose names match one of these patterns, such as '*.json'": ("只下载", "只下载名称匹配这些模式之一的文件，例如 '*.json'"),
    "Skip files whose names match one of these patterns": ("排除", "跳过名称匹配这些模式之一的文件"),
    # prepare
    "Records: JSON, JSON Lines, CSV, parquet, Arrow, WebDataset shards, or a folder of them": ("数据源", "数据记录：JSON、JSON Lines、CSV、parquet、Arrow、WebDataset 分片，或它们的目录"),
    "Folder to write the shards and their index to": ("目标目录", "分片和索引写到哪个目录"),
    "Folder that pictures' and videos' names are relative to; else the JSON's own": ("媒体目录", "图片和视频文件名相对于哪个目录；不给则是 JSON 所在目录"),
    "The source's own names of what is read: image=photo,caption=title": ("列名", "数据源里对应的列名：image=photo,caption=title"),
    "Which dataset of a dataset_info.json (LLaMA-Factory's)": ("数据集名", "dataset_info.json（LLaMA-Factory）里的哪个数据集"),
    "Shares of training, validation and test": ("划分比例", "训练、验证、测试的比例"),
    "How thoroughly each picture and video is checked": ("检查程度", "每张图片和每个视频检查到什么程度"),
    "Largest shard": ("分片大小", "最大的分片"),
    "Leave out records that cannot be used (picture missing or broken, rules broken), and count them": ("跳过坏样本", "跳过无法使用的记录（图片缺失或损坏、不合规则）并计数"),
    "Replace an existing dataset": ("覆盖", "替换已有的数据集"),
    "Print the report as JSON, of a detached run its id and folder": ("JSON 输出", "以 JSON 打印报告；后台运行则打印其编号和目录"),
    "Count tokens as this model sees them, for the report": ("统计模型", "报告里按这个模型统计 token"),
    "Processes; 0: one per core. The result does not depend on it": ("进程数", "进程数；0：每核一个。结果与它无关"),
    # convert
    "Model or checkpoint to read": ("来源", "要读取的模型或检查点"),
    "Folder to write": ("目标目录", "写到哪个目录"),
    "Precision to write": ("写出精度", "写出的精度"),
    "Device that casts to another precision; the result is bitwise the same, and cpu is seldom slower": ("转换设备", "用哪个设备转换精度；结果逐位相同，cpu 很少更慢"),
    "Names of the merger's tensors in the Megatron checkpoint": ("命名方式", "Megatron 检查点中 merger 张量的命名方式"),
    "Refuse SOURCE unless it is this size": ("模型规模", "SOURCE 不是这个规模就拒绝"),
    "HF folder with config and tokenizer, if SOURCE has none": ("HF 目录", "SOURCE 没有配置和分词器时，提供它们的 HF 目录"),
    "Base model of a LoRA run or a PEFT adapter, if it was moved": ("基座模型", "LoRA 运行或 PEFT 适配器的基座模型（如果被移动过）"),
    "Write the adapters of a LoRA run as a PEFT adapter, instead of the model with them merged in": ("只写适配器", "把 LoRA 运行的适配器写成 PEFT 适配器，而不是合并后的模型"),
    "Replace an existing checkpoint": ("覆盖", "替换已有的检查点"),
    "Convert weights that contain NaN or infinity, too, and count them": ("允许 NaN", "含 NaN 或无穷大的权重也转换，并计数"),
    "Read the target again and compare every tensor bitwise, and the logits of one picture where memory allows": ("校验", "重新读取目标并逐位比较每个张量；内存允许时还比较一张图片的 logits"),
    "Write a report as JSON": ("报告", "把报告写成 JSON"),
    # inspect
    "Folder to inspect, or a file of data: JSON, JSON Lines, a shard": ("路径", "要查看的目录，或数据文件：JSON、JSON Lines、分片"),
    "Write the report as JSON": ("JSON 报告", "把报告写成 JSON"),
    "count and mark tokens as this model sees them": ("统计模型", "按这个模型统计并标出 token"),
    "longer samples are counted as left out": ("序列长度", "更长的样本计为舍弃"),
    "inspect this split only": ("划分", "只查看这个划分"),
    "folder that the media's names in a JSON are relative to; else its own": ("媒体目录", "JSON 里的媒体文件名相对于哪个目录；不给则是它所在目录"),
    "the source's own names of what is read: image=photo,caption=title": ("列名", "数据源里对应的列名：image=photo,caption=title"),
    "show N samples, evenly spread": ("显示个数", "显示 N 个均匀分布的样本"),
    "inspect at most N samples, evenly spread; 0: all": ("查看上限", "最多查看 N 个均匀分布的样本；0：全部"),
    "write one self-contained page with the samples shown": ("HTML 页面", "把显示的样本写成一个独立的页面"),
    "write the loss of each sample under --model, JSON Lines, the highest first, and show those samples": ("逐样本损失", "用 --model 计算每个样本的损失，写成 JSON Lines，最高的在前，并显示这些样本"),
    # compare
    "First model: HF folder or torch_dist checkpoint": ("基座模型", "第一个模型：HF 目录或 torch_dist 检查点"),
    "Second model: HF folder, torch_dist checkpoint, its iter_… folder, a run's folder, or adapters, whose model is --base if it was moved; several are compared side by side":
        ("微调后模型", "第二个模型：HF 目录、torch_dist 检查点、其 iter_… 目录、运行目录或适配器（模型移动过时以 --base 为准）；可以给几个并排对比"),
    "Precision of the models; auto: fp32 on a CPU, bf16 on a GPU": ("精度", "模型的精度；auto：CPU 上 fp32，GPU 上 bf16"),
    "Prompt for the models": ("提示词", "给模型的提示词"),
    "Pictures, or folders of pictures": ("图片", "图片或图片目录"),
    "Instead: the pictures of a prepared dataset, a shard or LLaVA JSON; their answers are the references": ("数据集", "改用已准备的数据集、分片或 LLaVA JSON 里的图片；其回答作为参考"),
    "Split of the dataset": ("划分", "数据集的哪个划分"),
    "Use the dataset's own questions instead of the prompt": ("数据集提问", "用数据集自己的问题代替提示词"),
    "Reference captions by picture: JSON or JSON Lines, LLaVA or COCO; gives ROUGE-L and CIDEr": ("参考描述", "每张图片的参考描述：JSON 或 JSON Lines，LLaVA 或 COCO；用于计算 ROUGE-L 和 CIDEr"),
    "Use the first N pictures only; 0: all": ("图片上限", "只用前 N 张图片；0：全部"),
    "Sampling temperature; 0: greedy": ("采样温度", "采样温度；0：贪心"),
    "Sample from the most likely tokens with this total probability": ("top-p", "从累计概率达到这个值的最可能 token 中采样"),
    "Sample from the N most likely tokens; 0: all": ("top-k", "从最可能的 N 个 token 中采样；0：全部"),
    "Seed of the sampling": ("随机种子", "采样的随机种子"),
    "Maximum length of a caption": ("描述长度", "一个描述的最大长度"),
    "Captions written at once": ("批大小", "同时生成几个描述"),
    "Print the captions of the first N pictures; 0: of all": ("打印个数", "打印前 N 张图片的描述；0：全部"),
    "Write the captions as JSON; - writes them to standard output instead of the table": ("JSON 输出", "把描述写成 JSON；- 写到标准输出，代替表格"),
    "Write one self-contained page with pictures and differences": ("HTML 页面", "写成一个带图片和差异的独立页面"),
    # plan, recipe, doctor
    "GPUs of the whole run; 0: this machine's": ("GPU 数", "整个运行的 GPU 数；0：本机的"),
    "The GPUs by name: their memory and peak; default: this machine's, or those usual with --memory": ("GPU 型号", "GPU 型号，决定显存和峰值算力；默认是本机的，或按 --memory 推断"),
    "Memory of one GPU; 0: as nvidia-smi reports, else 80": ("显存", "一个 GPU 的显存；0：以 nvidia-smi 为准，否则 80"),
    "GPUs of one machine": ("单机 GPU 数", "一台机器的 GPU 数"),
    "Tokens of pictures in a row (a 1024 x 1024 picture has 1024); -1: 1024, at most half of the row": ("图片 token", "一行里图片占多少 token（1024 x 1024 的图片占 1024 个）；-1：1024，最多半行"),
    "Share of the GPUs' peak that a step reaches without parallel layout; 0: as measured for such a model and rows": ("MFU", "不并行时一步能达到的峰值算力比例；0：按同类模型和行长的实测"),
    "Dense bf16 peak of one GPU; 0: the data sheet of --gpu, or of this machine's": ("峰值算力", "一个 GPU 的稠密 bf16 峰值；0：按 --gpu 或本机 GPU 的规格"),
    "Rank the valid layouts for this many GPUs": ("推荐布局", "给这么多 GPU 的可用并行布局排序"),
    "Print a layout for each size on 1, 2, 4 and 8 GPUs of 80, 96 and 141 GB": ("预设布局", "打印各规模在 1、2、4、8 个 80、96、141 GB GPU 上的布局"),
    "Print a script that runs it, and nothing else": ("输出脚本", "只打印执行它的脚本"),
    "Container image of the k8s job": ("镜像", "k8s 任务的容器镜像"),
    "Persistent volume claim of the k8s job that holds model, data and runs": ("存储卷", "k8s 任务存放模型、数据和运行的持久卷声明"),
    "Where the k8s job mounts that volume": ("挂载点", "k8s 任务把该卷挂载到哪里"),
    "Write the options as a plan file (YAML) for qwen3vl finetune --plan": ("保存方案", "把选项写成方案文件（YAML），供 qwen3vl finetune --plan 使用"),
    "Print JSON": ("JSON 输出", "打印 JSON"),
    "GPUs of the run; 0: this machine's": ("GPU 数", "运行的 GPU 数；0：本机的"),
    "Folder of the run records; else $QWEN3VL_RUNS or ~/.qwen3vl/runs": ("运行目录", "运行记录的目录；不给则是 $QWEN3VL_RUNS 或 ~/.qwen3vl/runs"),
}
PREFIXES = {"Data: ": "数据：", "With --model: ": "配合 --model："}
"""Before the help of options that several commands share."""
AROUND: dict[str, str] = {
    # groups
    "Model": "模型", "Data": "数据", "Batch": "批次", "Schedule": "训练计划", "Layout": "并行布局", "Record": "记录", "Interruptions": "中断与重启",
    "Hub": "平台", "Files": "文件", "Report": "报告", "Checkpoint": "检查点", "Path": "路径", "Models": "模型", "Pictures": "图片",
    "Sampling": "采样", "Plan": "方案", "Recipe": "配方", "Doctor": "环境检查", "Run": "运行",
    # units
    "tokens": "token", "steps": "步", "layers": "层", "pixels": "像素", "bytes": "字节", "s": "秒", "min": "分钟", "GiB": "GiB",
    "TFLOP/s": "TFLOP/s",
    # around the help of an option
    "required": "必填", "default {value}": "默认 {value}", "default on": "默认开", "default off": "默认关", "one of {choices}": "可选 {choices}",
    "{low} to {high}{unit}": "{low} 到 {high}{unit}", "at least {low}{unit}": "至少 {low}{unit}", "at most {high}{unit}": "最多 {high}{unit}",
    "in {unit}": "单位 {unit}", "several, separated by spaces": "可以给几个，用空格分开", "on": "开", "off": "关", "any": "任意",
}
