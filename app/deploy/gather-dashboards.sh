#!/bin/sh
# Copies the dashboards, the kernel's and one of each feature that has one, from a repository to the
# one folder that Grafana reads: gather-dashboards.sh REPOSITORY FOLDER
set -eu
mkdir -p "$2"
cp "$1/app/deploy/dashboard.json" "$2/tessera.json"
for file in "$1"/features/*/deploy/dashboard.json; do
  if [ -e "$file" ]; then
    feature=${file#"$1/features/"}
    cp "$file" "$2/${feature%%/*}.json"
  fi
done
