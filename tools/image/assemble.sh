#!/bin/sh
# Assembles the image's root file system in the folder $1, where the Dockerfile has put the program in opt/typha: adds what
# runs of a few Debian packages, compiles all modules, and loads each once. Runs in a stage of the Dockerfile, on Debian.
# Neither a shell nor a package manager gets in: an intruder finds no tools, and there is less to update.
set -eu
image=$1
python=python3.13
stdlib=$image/usr/lib/$python

# The interpreter, and what it and the wheels load. Debian's security team looks after each.
packages="base-files ca-certificates libbz2-1.0 libc6 libc-bin libexpat1 libffi8 libgcc-s1 liblzma5 libpython3.13-minimal
libpython3.13-stdlib libssl3t64 libstdc++6 libuuid1 libzstd1 openssl python3-minimal python3.13-minimal zlib1g"

mkdir -p "$image/var/lib/dpkg/status.d" "$image/dev" "$image/etc/ssl/certs" "$image/proc" "$image/run" "$image/sys" "$image/usr/lib64"
ln -s usr/bin usr/lib usr/lib64 "$image"
ln -s /run "$image/var/run"
for package in $packages; do
    # Libraries, settings and licences; of programs only the interpreter. gconv is iconv's, which nothing here uses.
    dpkg-query --listfiles "$package" | grep -E \
        -e '^/usr/lib' -e '^/usr/bin/python3(\.[0-9]+)?$' -e '^/usr/share/(doc/[^/]+/copyright$|common-licenses/)' \
        -e '^/etc/(debian_version|gai.conf|host.conf|ld.so.conf.*|os-release|python3.*|ssl/openssl.cnf)$' |
        grep -vE -e '^/usr/lib/(binfmt.d|[^/]+/(audit|engines-3|gconv|getconf)|ssl/misc|ssl/private|systemd)' \
            -e '/lib-dynload/(_test|_ctypes_test|_xx|xx|_curses|_dbm|_gdbm|_sqlite3|_tkinter|readline)' \
            -e "^/usr/lib/$python/(ensurepip|test|pydoc_data|curses|dbm|idlelib|sqlite3|tkinter|turtle|_pyrepl|unittest)" \
            -e '\.(a|o|rst|ini)$' || true
    # Where scanners look for the packages of an image that has no package manager.
    dpkg-query --status "$package" >"$image/var/lib/dpkg/status.d/$package"
done | sort --unique >/tmp/files
tar --create --no-recursion --absolute-names --files-from=/tmp/files | tar --extract --absolute-names --directory="$image" --transform="s,^/,$image/,"
cp /etc/ssl/certs/ca-certificates.crt "$image/etc/ssl/certs"
cp /etc/nsswitch.conf "$image/etc"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$image/etc/hosts" # what most runtimes put in its place
printf 'root:x:0:0::/:/sbin/nologin\ntypha:x:999:999::/:/sbin/nologin\n' >"$image/etc/passwd"
printf 'root:x:0:\ntypha:x:999:\n' >"$image/etc/group"

# Where a wheel came from while the image was built is nobody's affair afterwards.
find "$image/opt" -name direct_url.json -delete
rm -rf "$image"/opt/typha/bin/[Aa]ctivate* "$image/opt/typha/include"
find "$image" -name __pycache__ -prune -exec rm -r {} +
# What only PyPy loads, and symbols for debuggers: half of the image.
rm "$image"/opt/typha/lib/*/site-packages/zstandard/_cffi.*.so
find "$image/opt" -name '*.so' -exec strip --strip-unneeded {} +
find "$image/usr/lib" "$image/opt/typha/lib" -name '*.py' -exec chmod a-x {} +
# maturin lists the crates in the wheel, with the folder, the time and a random number of the build.
sed -i -E 's,path\+file://[^#"]*,path+file:///native,g; s/"serialNumber":"[^"]*",//; s/"timestamp":"[^"]*"/"timestamp":"1970-01-01T00:00:00Z"/' \
    "$image"/opt/typha/lib/*/site-packages/typha_rustls-*.dist-info/sboms/*.json
# With hashes instead of times, and never checked: nothing can change in the image, and two builds give the same files.
"$python" -m compileall -q --invalidation-mode unchecked-hash -s "$image" -p / "$stdlib" "$image/opt/typha/lib"
# Whatever lacks a library fails here, and not in a cluster.
find "$stdlib/lib-dynload" "$image/opt/typha/lib" -name '*.so' | sed "s,^$image,," |
    PYTHONDONTWRITEBYTECODE=1 chroot "$image" /opt/typha/bin/python -c '
import ctypes, sys
for line in sys.stdin:
    ctypes.CDLL(line.strip())'
find "$image" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
