# What prepare, run and run-cases agree on. Sourced, never run.
# shellcheck shell=bash

# Disks and logs live here. It must be a real file system: a disk image on tmpfs would put the
# guest's swap into the host's swappable memory.
cache="${SWAPFS_TEST_CACHE:-/var/cache/swapfs-tests}"
guest_cache="$cache/guest"

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Where the kernel and initramfs of a guest are: `default` is Debian's 6.12, `newer` one with FUSE
# over io_uring (6.14 and later).
kernel_directory() { # KERNEL
    case "$1" in
    default) echo "$guest_cache" ;;
    newer) echo "$guest_cache/newer" ;;
    *) die "no kernel $1 (there are: default, newer)" ;;
    esac
}

require_real_file_system() { # DIRECTORY
    mkdir -p "$1"
    case "$(stat -f -c %T "$1")" in
    tmpfs | ramfs) die "$1 is on tmpfs: set SWAPFS_TEST_CACHE to a directory on a disk" ;;
    esac
}
