#!/bin/sh
# Usage: logged.sh LOG WHAT COMMAND...
#
# Runs the command with what it says in the file LOG.  Where it fails, WHAT failed: its last lines
# and the log's name are shown.

log=$1 what=$2
shift 2
mkdir -p "${log%/*}"
"$@" >"$log" 2>&1 && exit
code=$?
echo "pyvmm: $what failed:" >&2
tail -n 10 "$log" | sed 's/^/    /' >&2
echo "  log: $log" >&2
exit $code
