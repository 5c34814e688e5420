#!/bin/bash
# Bring the scripts that the inbox's pages use, and the data of its HTML check, in the versions named here, from their
# npm packages.
# After a change of versions, run this, then the browser tests, and commit what has changed.
set -euo pipefail
HTMX=2.0.11
SSE=2.2.4
CANIEMAIL=2.0.2
here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "$(dirname "$0")/../txsmtpd/inbox/web/static/vendor" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# package NAME VERSION FILE NAME-HERE: unpack a package, and copy its script and its licence.
package() {
    npm pack --silent "$1@$2" >/dev/null
    tar xzf "$1-$2.tgz"
    cp "package/$3" "$folder/$4.min.js"
    cp package/LICENSE "$folder/$4-LICENSE.txt"
    rm -r package
}

package htmx.org "$HTMX" dist/htmx.min.js htmx
package htmx-ext-sse "$SSE" dist/sse.min.js sse
npm pack --silent "caniemail@$CANIEMAIL" >/dev/null
tar xzf "caniemail-$CANIEMAIL.tgz"
python3 "$here/caniemail.py" package/data/caniemail.json "$folder/caniemail.json"
cp package/LICENSE "$folder/caniemail-LICENSE.txt"
sed -i -E "s/(htmx\.org) [0-9.]+/\1 $HTMX/; s/(htmx-ext-sse) [0-9.]+/\1 $SSE/; s/(caniemail) [0-9.]+/\1 $CANIEMAIL/" "$folder/README.txt"
