#!/bin/sh
# Usage: logged.sh LOG WHAT COMMAND...
#
# Runs the command with what it says in the file LOG.  Where it fails, WHAT failed: its last lines
# and the log's name are shown.

# What pip puts around the output of a program it ran: the reason is before it.
frame='^ *$|end of output\]|originates from a subprocess|exited-with-error|did not run|exit code:|See above'
log=$1 what=$2
shift 2
mkdir -p "${log%/*}"
"$@" >"$log" 2>&1 && exit
code=$?
echo "pyvmm: $what failed:" >&2
grep -vE "$frame" "$log" | tail -n 10 | sed 's/^/    /' >&2
echo "  log: $log" >&2
exit $code
