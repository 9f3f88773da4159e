#!/bin/sh
# Usage: logged.sh LOG WHAT COMMAND...
#
# Runs the command with its output in the file LOG.  If it fails, prints WHAT failed, its last lines
# and the name of the log.

# Lines that pip prints around the output of a program: they hide the reason.
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
