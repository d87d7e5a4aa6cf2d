#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time each (default 30s),
# one after another, and stops at the first that finds something.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-30s}
# Small scratch files on memory, and no minute of silence to make one input
# smaller: both make the difference between one and thousands of runs a second.
if [ -d /dev/shm ]; then
	TMPDIR=$(mktemp -d /dev/shm/lifeboat-fuzz-XXXXXX)
	export TMPDIR
	trap 'rm -rf "$TMPDIR"' EXIT
fi
found=0
while IFS=: read -r file target; do
	found=$((found + 1))
	echo "== ${file%/*} $target"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1x "./${file%/*}"
done < <(git ls-files '*_test.go' | xargs grep -Eo '^func Fuzz[A-Za-z0-9_]+' | sed 's/:func /:/')
echo "$found fuzz targets ran for $time each"
