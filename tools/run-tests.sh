#!/usr/bin/env bash
# Runs the tests of the named packages and ends with one line that counts what
# passed, failed and was skipped. A skipped test is listed by name: nothing is
# left out silently.
set -euo pipefail
cd "$(dirname "$0")/.."
make --no-print-directory bin/tools/gotestsum bin/tools/versitygw
exec bin/tools/gotestsum --format pkgname -- \
	-count=1 -timeout 30m "$@"
