#!/usr/bin/env bash
# Debian's chromium and two fonts, for tests/notebooks/test_notebooks.py. Without root, apt-get or a network it says so in one
# line and is no failure: those tests skip then, and say why.
set -u
for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "no chromium, and no apt-get as root to install it: the browser tests skip" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
install() { timeout 300 apt-get install -y -q --no-install-recommends chromium fonts-dejavu-core fonts-noto-cjk >/dev/null 2>&1; }
install || { timeout 120 apt-get update -q >/dev/null 2>&1 && install; } || echo "chromium could not be installed: the browser tests skip" >&2
exit 0
