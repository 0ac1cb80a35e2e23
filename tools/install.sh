#!/bin/sh
# Installs the release binaries and the man pages. For people (`sudo tools/install.sh`) and for
# packagers (`tools/install.sh --prefix /usr --destdir DIR`): needs no root where it may write.
set -eu

usage() {
    cat <<'END'
usage: tools/install.sh [--prefix PREFIX] [--destdir DIR] [--helperdir DIR] [--target DIR]

  --prefix PREFIX   programs go to PREFIX/sbin, pages to PREFIX/share/man (default /usr/local)
  --destdir DIR     put before every path: for packages (default $DESTDIR)
  --helperdir DIR   where mount(8) and fsck(8) look for mount.swapfs and fsck.swapfs
                    (default PREFIX/sbin for the prefix /usr, else /sbin)
  --target DIR      where cargo put the release build (default target/release)

Build first: cargo build --release
END
}

fail() {
    echo "install.sh: $1" >&2
    exit "${2:-1}"
}

prefix=/usr/local
destdir=${DESTDIR:-}
helper_dir=
source_dir=$(cd "$(dirname "$0")/.." && pwd)
target_dir=${CARGO_TARGET_DIR:-$source_dir/target}/release

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage; exit 0 ;;
        --prefix | --destdir | --helperdir | --target)
            [ $# -ge 2 ] || fail "$1: no value: see --help" 2
            case $1 in
                --prefix) prefix=$2 ;;
                --destdir) destdir=$2 ;;
                --helperdir) helper_dir=$2 ;;
                --target) target_dir=$2 ;;
            esac
            shift 2
            ;;
        *) fail "$1: no such option: see --help" 2 ;;
    esac
done

case $prefix in /*) ;; *) fail "--prefix $prefix: not an absolute path" 2 ;; esac
prefix=${prefix%/}
if [ -z "$helper_dir" ]; then
    # mount(8) and fsck(8) look in /sbin only; /usr/sbin is the same directory where /usr is used.
    if [ "$prefix" = /usr ]; then helper_dir=/usr/sbin; else helper_dir=/sbin; fi
fi
sbin_dir=$prefix/sbin
man_dir=$prefix/share/man

[ -x "$target_dir/swapfs" ] ||
    fail "$target_dir/swapfs: not there: build first, with cargo build --release"

# One program under all its names.
install -d "$destdir$sbin_dir" "$destdir$helper_dir"
install -m 755 "$target_dir/swapfs" "$destdir$sbin_dir/swapfs"
for name in swapfsd mkswapfs; do
    ln -sf swapfs "$destdir$sbin_dir/$name"
done
for name in mount.swapfs fsck.swapfs mkfs.swapfs; do
    if [ "$helper_dir" = "$sbin_dir" ]; then
        ln -sf swapfs "$destdir$helper_dir/$name"
    else
        ln -sf "$sbin_dir/swapfs" "$destdir$helper_dir/$name"
    fi
done

for page in "$source_dir"/man/*.[1-8]; do
    [ -e "$page" ] || continue
    section=${page##*.}
    install -d "$destdir$man_dir/man$section"
    install -m 644 "$page" "$destdir$man_dir/man$section/"
done

echo "installed swapfs to $destdir$sbin_dir, the helpers to $destdir$helper_dir, the manual to $destdir$man_dir"
