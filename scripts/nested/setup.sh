# Prepares what scripts/nested-xen boots: host packages, the distribution's Xen and Linux packages
# (downloaded and unpacked below target/nested, never installed), and one initramfs each for dom0 and for
# guests. Sourced by the scripts beside this directory; everything is done once and kept.
# To start afresh: rm -r target/nested

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
nested=$repository/target/nested

# The Debian release of this machine, or nothing.
machine_debian=$([ ! -r /etc/os-release ] || (. /etc/os-release && [ "$ID" = debian ] && echo "${VERSION_ID-}") || true)
# The release whose Xen and Linux are booted; empty for the packages in this machine's lists.
debian='' apt_options=()

# choose_debian RELEASE: from here on uses the packages of that release. A release that is not this machine's has an apt
# and a folder of its own.
choose_debian() {
    [ "$1" != "$machine_debian" ] && [ "$1" != "$debian" ] || return 0
    debian=$1
    nested=$repository/target/nested/debian-$debian
    local apt=$nested/apt
    apt_options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$apt/lists" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache")
}

suite_of() {
    case $1 in
    12) echo bookworm ;;
    13) echo trixie ;;
    *) return 1 ;;
    esac
}

# The lists of the private apt, once.
fetch_lists() {
    local apt=$nested/apt suite by
    [ ! -e "$apt/complete" ] || return 0
    suite=$(suite_of "$debian")
    need_host_files /usr/share/keyrings/debian-archive-keyring.gpg=debian-archive-keyring
    by='[arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    printf "deb $by http://deb.debian.org/%s main\n" "debian $suite" "debian $suite-updates" \
        "debian-security $suite-security" >"$apt/sources.list"
    : >"$apt/status"
    say "fetching the package lists of Debian $debian"
    quietly apt-get "${apt_options[@]}" -q -o APT::Sandbox::User=root update
    touch "$apt/complete"
}

known() { apt-cache "${apt_options[@]}" "$@"; }

# has_package NAME: whether it is available. A name that other packages only mention prints nothing, with status 0.
has_package() { [ -n "$(known show "$1" 2>/dev/null)" ]; }

say() { printf -- '-- %s\n' "$*" >&2; }

# The one way in which setting up fails: 125 is what scripts/nested-xen documents for it.
setup_failed() {
    printf 'error: %s\n' "$*" >&2
    exit 125
}

# `set -e` ends a script without a message; no script may end like that.
set -E
trap 'echo "error: ${BASH_SOURCE[0]##*/}, line $LINENO: \"$BASH_COMMAND\" failed with status $?" >&2' ERR

# Runs a noisy command quietly; shows the end of what it said if it fails.
quietly() {
    local log=$nested/setup.log
    "$@" >"$log" 2>&1 || { tail -n 15 "$log" >&2; setup_failed "'$*' failed (all of its output: $log)"; }
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

can_be_root() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null || { command -v sudo >/dev/null && [ -t 0 ]; }; }

# Everything that is made lies below target/nested; a run as root may have left that to root.
need_own_folder() {
    mkdir -p "$nested" 2>/dev/null && [ -w "$nested" ] ||
        setup_failed "$nested cannot be written to by $(id -un); is it of a run as another user?"
}

need_apt() { command -v apt-get >/dev/null || setup_failed "$1 (only Debian and Ubuntu are supported)"; }

# A fresh machine or container has no package lists.
need_package_lists() {
    if [ -n "$debian" ]; then
        fetch_lists
        return
    fi
    [ -z "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -print -quit 2>/dev/null)" ] || return 0
    need_apt "there are no package lists here"
    can_be_root || setup_failed "there are no package lists here; please run: sudo apt-get update"
    say "fetching package lists (apt-get update)"
    quietly as_root apt-get -q update
}

# need_host_packages COMMAND=PACKAGES...: installs the packages whose command is missing.
need_host_packages() {
    local pair missing=()
    for pair in "$@"; do
        # shellcheck disable=SC2206 # several packages are several words
        command -v "${pair%%=*}" >/dev/null || missing+=(${pair#*=})
    done
    [ ${#missing[@]} = 0 ] || install_here "${missing[@]}"
}

# need_host_files FILE=PACKAGE...: the same for files.
need_host_files() {
    local pair missing=()
    for pair in "$@"; do
        [ -e "${pair%%=*}" ] || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} = 0 ] || install_here "${missing[@]}"
}

install_here() {
    local missing=("$@") removed
    need_apt "needed and not found: ${missing[*]}"
    can_be_root || setup_failed "please run: sudo apt-get install --no-install-recommends ${missing[*]}"
    say "installing on this machine: ${missing[*]}"
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update
    removed=$(apt-get -q -s install --no-install-recommends "${missing[@]}" 2>/dev/null | awk '$1 == "Remv" { print $2 }' | xargs) || true
    [ -z "$removed" ] || say "apt-get removes for that: $removed"
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${missing[@]}"
}

# The newest Xen that the distribution has, as its package names spell it, such as 4.17.
xen_version() {
    known pkgnames xen-hypervisor- 2>/dev/null |
        sed -n 's/^xen-hypervisor-\([0-9][0-9.]*\)-amd64$/\1/p' | sort -V | tail -n 1
}

# package_closure PACKAGE...: the packages and everything they depend on, one a line.
package_closure() {
    known depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances "$@" | grep '^[a-z0-9]' | sort -u
}

# The kernel package behind the distribution's meta package, with Ubuntu's separate package of modules.
kernel_packages() {
    local meta=linux-image-generic
    has_package linux-image-amd64 && meta=linux-image-amd64
    known depends "$meta" | sed -n 's/^ *Depends: \(linux-\(image\|modules\)-[0-9].*\)/\1/p'
    package_closure "$meta" | grep '^linux-modules-[0-9]' || true
}

# What a dom0 of Debian has beside busybox, for the package: dpkg, a shell, and the programs that start daemons.
base_programs=(dpkg dash tar util-linux sysvinit-utils)

# Nothing of this machine goes into dom0, so a machine of one release can make the dom0 of another.
download_packages() {
    [ -e "$nested/packages/complete" ] && return
    local version packages
    version=$(xen_version)
    [ -n "$version" ] ||
        setup_failed "the package lists name no xen-hypervisor-*-amd64 (on Ubuntu it is in universe; sudo apt-get update may help)"
    mapfile -t packages < <({
        printf '%s\n' "xen-hypervisor-$version-amd64" "xen-utils-$version" xenstore-utils busybox-static "${base_programs[@]}"
        # Where older releases have the functions of init scripts.
        ! has_package lsb-base || echo lsb-base
        kernel_packages
        package_closure "xen-utils-$version" xenstore-utils "${base_programs[@]}" |
            grep -E '^(xen-utils-common|zlib1g|lib.*)$' | grep -vE '^lib(python|pam|ssl|text|debian)|-perl$'
    } | sort -u)
    say "downloading ${#packages[@]} packages of Xen $version and Linux (about 90 MB)"
    rm -rf "$nested/packages"
    mkdir -p "$nested/packages"
    cd "$nested/packages"
    quietly apt-get "${apt_options[@]}" -q -o APT::Sandbox::User=root download "${packages[@]}"
    cd "$repository"
    echo "$version" >"$nested/packages/complete"
}

# What belongs to Xen and Linux goes into one folder, whose programs run on this machine, too; the rest, with a C library of
# its own, into another.
unpack_packages() {
    [ "$nested/unpacked/complete" -nt "$nested/packages/complete" ] && return
    local deb to
    say "unpacking them"
    rm -rf "$nested/unpacked" "$nested/base"
    mkdir -p "$nested/unpacked" "$nested/base"
    for deb in "$nested"/packages/*.deb; do
        case ${deb##*/} in
        xen* | linux-* | busybox* | libxen* | libyajl* | libncurses6* | libtinfo*) to=unpacked ;;
        *) to=base ;;
        esac
        quietly dpkg-deb --extract "$deb" "$nested/$to"
    done
    touch "$nested/unpacked/complete"
}

# A bzImage holds the ELF kernel compressed. It is unpacked once here, and not in emulation at each
# boot. The header's words at 0x1f1, 0x248 and 0x24c (Linux, Documentation/arch/x86/boot.rst) say where it is.
extract_kernel() {
    local image=$1 start length magic
    word() { od -A n -t u"$2" -j "$1" -N "$2" "$image" | tr -d ' '; }
    start=$((($(word $((0x1f1)) 1) + 1) * 512 + $(word $((0x248)) 4)))
    length=$(word $((0x24c)) 4)
    magic=$(od -A n -t x1 -j "$start" -N 4 "$image" | tr -d ' ')
    # The last 4 bytes are the unpacked size, which the unpackers would take for damage.
    payload() { tail -c +$((start + 1)) "$image" | head -c $((length - 4)) || true; }
    case $magic in
    fd377a58) payload | xz -dc ;;
    28b52ffd) payload | zstd -dcq ;;
    1f8b*) payload | gzip -dc ;;
    *) return 1 ;;
    esac
}

build_kernels() {
    local image
    image=$(ls "$nested"/unpacked/boot/vmlinuz-* | sort -V | tail -n 1)
    gzip -dc "$(ls "$nested"/unpacked/boot/xen-*-amd64.gz)" >"$nested/xen"
    if ! extract_kernel "$image" >"$nested/linux" 2>/dev/null || [ "$(head -c 4 "$nested/linux" | tail -c 3)" != ELF ]; then
        cp "$image" "$nested/linux"
    fi
}

# The places of libraries and of their loader in the unpacked packages; merged /usr or not.
library_path() {
    local folder path=''
    for folder in "$nested"/{unpacked,base}/{usr/lib,lib}/x86_64-linux-gnu; do
        path=$path:$folder
    done
    echo "${path#:}"
}
loader() { find "$nested/base" -name ld-linux-x86-64.so.2 | sort | head -n 1; }

# add_programs ROOT PROGRAM...: copies programs below ROOT with every library they name, as the release's own loader
# finds them. libgcc_s is not named by anybody: the C library loads it when a thread is cancelled, which libxenstore does.
add_programs() {
    local root=$1 library path loader program
    shift
    path=$(library_path) loader=$(loader)
    mkdir -p "$root/lib/x86_64-linux-gnu" "$root/lib64"
    {
        for program in "$@"; do
            "$loader" --library-path "$path" --list "$program" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' || true
        done
        find "$nested/base" -name libgcc_s.so.1
    } | sort -u | while read -r library; do
        cp -L "$library" "$root/lib/x86_64-linux-gnu/"
    done
    cp -L "$loader" "$root/lib64/ld-linux-x86-64.so.2"
}

# add_module ROOT NAME: a kernel module as plain ELF; one that is built in is simply not there.
add_module() {
    local file
    file=$(find "$nested/unpacked" -path '*/modules/*' -name "$2.ko*" | head -n 1)
    mkdir -p "$1/modules"
    case $file in
    *.ko) cp "$file" "$1/modules/" ;;
    *.xz) xz -dc "$file" >"$1/modules/$2.ko" ;;
    *.zst) zstd -dcq "$file" >"$1/modules/$2.ko" ;;
    esac
}

# pack_directory DIRECTORY: an initramfs, not compressed: unpacking costs more than loading.
pack_directory() {
    (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio --quiet -0 -o -H newc -R 0:0)
}

# Both initramfs have this: busybox and the xenstore clients.
start_root() {
    local root=$1
    rm -rf "$root"
    mkdir -p "$root"/{bin,sbin,dev,proc,sys,tmp,run,etc,var,usr/bin,root}
    cp "$nested"/unpacked/*bin/busybox "$root/bin/" 2>/dev/null || cp "$nested"/unpacked/usr/bin/busybox "$root/bin/"
    ln -s busybox "$root/bin/sh"
    ln -s /run "$root/var/run"
    cp "$nested"/unpacked/usr/bin/xenstore-{chmod,exists,list,ls,read,rm,watch,write} "$root/usr/bin/"
    add_programs "$root" "$root/usr/bin/xenstore-ls"
}

build_guest_initramfs() {
    local root=$nested/guest-root
    start_root "$root"
    install -m 755 "$repository/scripts/nested/guest-init" "$root/init"
    # The kernel starts these two itself when the toolstack asks for a shutdown or reboot.
    printf '#!/bin/sh\nexec /bin/busybox poweroff -f\n' >"$root/sbin/poweroff"
    printf '#!/bin/sh\nexec /bin/busybox reboot -f\n' >"$root/sbin/reboot"
    chmod 755 "$root"/sbin/*
    pack_directory "$root" >"$nested/guest.cpio"
}

build_dom0_initramfs() {
    local root=$nested/dom0-root tools module
    tools=usr/lib/xen-$(cat "$nested/packages/complete")/bin
    start_root "$root"
    mkdir -p "$root/$tools" "$root/etc/xen" "$root/var/log/xen" "$root/var/lib/xen" "$root/guest"
    cp "$nested/unpacked/$tools"/* "$root/$tools/"
    ln -s "/$tools" "$root/xen-tools"
    add_programs "$root" "$root/$tools"/*
    cp "$nested/unpacked/etc/xen/oxenstored.conf" "$root/etc/xen/" 2>/dev/null || true
    echo 'autoballoon="off"' >"$root/etc/xen/xl.conf"
    # In the order in which they have to be loaded.
    for module in xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs; do
        add_module "$root" "$module"
    done
    ln "$nested/linux" "$root/guest/kernel"
    ln "$nested/guest.cpio" "$root/guest/initramfs"
    pack_directory "$root" >"$nested/dom0.cpio"
}

# Built again when this file or the contents of a guest have changed.
build_images() {
    local stamp
    stamp=$(cat "$repository"/scripts/nested/{setup.sh,guest-init} "$nested/packages/complete" | cksum)
    [ -e "$nested/images" ] && [ "$(cat "$nested/images")" = "$stamp" ] && return
    say "building the initramfs of dom0 and of the guests"
    rm -f "$nested/images"
    build_kernels
    build_guest_initramfs
    build_dom0_initramfs
    rm -rf "$nested"/{guest,dom0}-root
    echo "$stamp" >"$nested/images"
}

# Everything that scripts/nested-xen needs. Several may run at once; one prepares, the others wait.
setup_nested() {
    need_own_folder
    [ "$(uname -m)" = x86_64 ] || setup_failed "an x86-64 machine is needed; this is $(uname -m)"
    exec 9>"$nested/lock"
    flock 9
    need_host_packages qemu-system-x86_64=qemu-system-x86 cpio=cpio gzip=gzip xz=xz-utils zstd=zstd
    [ -e "$nested/packages/complete" ] || need_package_lists
    download_packages
    unpack_packages
    build_images
    exec 9>&-
}

# Python and Debian's client pyxs in an archive of their own, so that only the dom0 that asks for them holds them:
# the interpreter and what pyxs imports, compiled. Empty where the distribution has no pyxs.
setup_pyxs() {
    [ -e "$nested/pyxs.cpio" ] && return
    exec 9>"$nested/lock"
    flock 9
    need_package_lists
    local from=$nested/pyxs root=$nested/pyxs-root packages=()
    rm -rf "$from" "$root"
    mkdir -p "$from/packages" "$root"
    if has_package python3-pyxs; then
        mapfile -t packages < <(package_closure python3-minimal libpython3-stdlib |
            grep -E '^((lib)?python3\.[0-9]+-(minimal|stdlib)|libexpat1|zlib1g)$')
        say "downloading Python and pyxs (about 5 MB)"
        (cd "$from/packages" && quietly apt-get "${apt_options[@]}" -q -o APT::Sandbox::User=root download "${packages[@]}" python3-pyxs)
        build_pyxs "$from" "$root"
    else
        say "this distribution has no python3-pyxs"
    fi
    pack_directory "$root" >"$nested/pyxs.part"
    mv "$nested/pyxs.part" "$nested/pyxs.cpio"
    rm -rf "$from" "$root"
    exec 9>&-
}

# build_pyxs FROM ROOT: unpacks the packages in FROM, and copies below ROOT what an `import pyxs` takes.
build_pyxs() {
    local from=$1 root=$2 deb python file libraries
    for deb in "$from"/packages/*.deb; do
        quietly dpkg-deb --extract "$deb" "$from"
    done
    python=$(ls "$from"/usr/bin/python3.* | head -n 1)
    libraries=$from/usr/lib/x86_64-linux-gnu:$from/lib/x86_64-linux-gnu:$(library_path)
    # It runs once here, which compiles its imports and shows which they are.
    PYTHONDONTWRITEBYTECODE='' PYTHONHOME=$from/usr PYTHONPATH=$from/usr/lib/python3/dist-packages \
        "$(loader)" --library-path "$libraries" "$python" -S -c 'import sys, copy, time, pyxs.client
for module in list(sys.modules.values()):
    for name in ("__file__", "__cached__"):
        if getattr(module, name, None): print(getattr(module, name))' >"$from/files" ||
        setup_failed "the Python of this distribution does not run here"
    grep "^$from/" "$from/files" | sort -u | while read -r file; do
        mkdir -p "$root/$(dirname "${file#"$from"/}")"
        # With its time, by which Python sees that the compiled form still fits.
        cp -pL "$file" "$root/${file#"$from"/}"
    done
    mkdir -p "$root/usr/bin"
    cp "$python" "$root/usr/bin/python3"
    add_programs "$root" "$root/usr/bin/python3"
    find "$from" \( -name 'libexpat.so.*' -o -name 'libz.so.*' \) |
        while read -r file; do cp -L "$file" "$root/lib/x86_64-linux-gnu/"; done
}
