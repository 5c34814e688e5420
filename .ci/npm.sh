#!/bin/bash
# Put the npm packages where tests/inbox/test_clients.py looks for them: clients of Mailpit's API, in two versions, since
# only the older one listens to events. Nothing is done if they are there. Needs Node.js 18 or later.
set -euo pipefail

place=/var/cache/txsmtpd-tests/node
packages="mailpit-api@2.1.0 mailpit-api-events@npm:mailpit-api@1.9.1"

if [ "$(cat "$place/packages" 2>/dev/null)" = "$packages" ]; then exit; fi

if ! command -v npm >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends nodejs npm
fi
mkdir -p "$place"
cd "$place"
echo '{"private": true}' >package.json
# shellcheck disable=SC2086  # several words
npm install --no-audit --no-fund --ignore-scripts --loglevel=error $packages
echo "$packages" >packages
