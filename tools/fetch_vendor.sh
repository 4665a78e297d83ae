#!/bin/sh
# Fetch MathJax, which the book serves itself, into tools/vendor, and axe, which tests its accessibility, into tests/vendor.
# Needs npm; the result is committed, so a build does not.
set -eu
dir=$(cd "$(dirname "$0")" && pwd)/vendor
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
npm pack --silent mathjax@3.2.2 >/dev/null
tar xzf mathjax-3.2.2.tgz
mkdir -p "$dir/mathjax/output/chtml/fonts"
cp package/es5/tex-chtml.js package/LICENSE "$dir/mathjax/"
cp -r package/es5/output/chtml/fonts/woff-v2 "$dir/mathjax/output/chtml/fonts/"
npm pack --silent axe-core@4.14.1 >/dev/null
tar xzf axe-core-4.14.1.tgz
mkdir -p "$dir/../../tests/vendor"
cp package/axe.min.js "$dir/../../tests/vendor/axe.min.js"
cp package/LICENSE "$dir/../../tests/vendor/axe-LICENSE"
