#!/usr/bin/env bash
# Have an OpenSSH server at hand for the tests of `unmask remote`, which start their own on loopback, on a high port.
#
# Where there is none, Debian's package is installed if this is root with apt-get (no service is started); otherwise those
# tests say that they are skipped.
set -euo pipefail

PATH=$PATH:/usr/sbin:/usr/local/sbin
command -v sshd >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "tools/sshd.sh: no OpenSSH server here, tests of 'unmask remote' are skipped (on Debian or Ubuntu: apt install openssh-server)" >&2
  exit 0
fi

export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # invoke-rc.d starts nothing in runlevel 1
apt-get update -qq
apt-get install -y -qq --no-install-recommends openssh-server
