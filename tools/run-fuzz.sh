#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time each (default 30s),
# one after another, and stops at the first that finds something.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-30s}
found=0
while IFS=: read -r file target; do
	found=$((found + 1))
	echo "== ${file%/*} $target"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./${file%/*}"
done < <(git ls-files '*_test.go' | xargs grep -Eo '^func Fuzz[A-Za-z0-9_]+' | sed 's/:func /:/')
echo "$found fuzz targets ran for $time each"
