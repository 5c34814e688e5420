#!/bin/bash
# Put Exim where tests/test_exim.py looks for it. As a package it would take the place of Postfix, which other tests use;
# so only its libraries are installed, and the program is unpacked beside them. Nothing is done if it already runs.
set -euo pipefail

place=/var/cache/txsmtpd-tests/exim
exim=$place/usr/sbin/exim4
account=Debian-exim # compiled into the program, which does not run without it

starts() {
    [ -x "$1" ] && "$1" -C /dev/null -bV 2>/dev/null | grep '^Exim version'
}

if starts "$exim" || starts "$(command -v exim4)"; then exit; fi

export DEBIAN_FRONTEND=noninteractive
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
apt-get update -qq
cd "$unpacked"
apt-get download -qq -o APT::Sandbox::User=root exim4-daemon-light
package=$(echo exim4-daemon-light_*.deb)
libraries=$(dpkg-deb -f "$package" Depends | tr ',' '\n' | grep -o '^ *lib[^ ]*')
# shellcheck disable=SC2086  # several words
apt-get install -qq -y --no-upgrade --no-install-recommends $libraries
if ! getent passwd "$account" >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$account"
fi
mkdir -p "$(dirname "$place")"
dpkg-deb -x "$package" unpacked
rm -rf "$place"
mv unpacked "$place"
chmod u-s "$exim" # nobody gets root's rights by way of a cache
starts "$exim"
