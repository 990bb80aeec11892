#!/bin/busybox sh
# The varve command of the recovery medium. What carries the name @ is left alone when the system ends its processes (systemd: "Storage daemons for the root file system");
# and it is not the one to be killed when memory is short: the root filesystem is behind it.
echo -1000 >/proc/self/oom_score_adj
exec -a @varve /usr/bin/node /varve/dist/tools/varve.js "$@"
