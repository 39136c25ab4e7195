# What the programs of this package share; sourced by them.
# shellcheck disable=SC2034 # what is set here is used there

image=/usr/lib/xenstore-stubdom/xenstore-stubdom
start=/usr/lib/xenstore-stubdom/xenstored
# What people look at the store with.
tools=/usr/lib/xenstore-stubdom/xenstore-tools
# What has the domain go on when it was shut down, and its unit.
guard=/usr/lib/xenstore-stubdom/xenstore-guard
guard_unit=xenstore-stubdom-guard.service
start_with_xl=/usr/lib/xenstore-stubdom/start-with-xl
settings=/etc/default/xenstore-stubdom
# The domain as `xl create` builds it.
config=/etc/xen/xenstore-stubdom.cfg
# Debian's choice of a xenstore, read by /etc/init.d/xen.
choice=/etc/default/xen
# Written by init-xenstore-domain and start-with-xl, gone with the next boot.
pid_file=/run/xen/xenstored.pid

# What holds where the settings say nothing.
IMAGE=$image MEMORY=8 MAXMEM=64 OPTIONS='' FALLBACK=yes WITH_XL=no
# shellcheck source=scripts/deb/default
[ ! -r $settings ] || . $settings

# has_systemd: it is what runs this host.
has_systemd() { [ -d /run/systemd/system ]; }
# has_systemctl: units can be enabled, whether it runs or not.
has_systemctl() { command -v systemctl >/dev/null; }

say() { printf "xenstore-stubdom: %s\n" "$*" >&2; }

die() {
    say "$@"
    exit 1
}

# xen_tool NAME: where the program of this Xen is. Before Xen has run, Debian does not tell which that will be, and that
# of any serves as a sign that there is one.
xen_tool() {
    this=$(/usr/lib/xen-common/bin/xen-dir 2>/dev/null) || this=''
    for directory in "${this:-/nowhere}/bin" /usr/libexec/xen/bin /usr/lib/xen/bin /usr/local/libexec/xen/bin \
        /usr/local/lib/xen/bin; do
        [ ! -x "$directory/$1" ] || { echo "$directory/$1" && return; }
    done
    [ -n "$this" ] || for directory in /usr/lib/xen-[0-9]*/bin; do
        [ ! -x "$directory/$1" ] || { echo "$directory/$1" && return; }
    done
    command -v "$1"
}

# running_domid: the xenstore domain of this boot, or nothing.
running_domid() { sed -n 's/^domid://p' "$pid_file" 2>/dev/null; }

# running_image: what the running domain calls itself. Not to be called before there is one: dom0's kernel would take
# the request for the sign that a store is there, and then never accept one.
running_image() {
    timeout 10 xenstore-control stats 2>/dev/null | sed -n 's/^image: \(\[.*\]\)$/\1/p'
}

# version_of FILE: what the image in a file calls itself; a gzip file does as well.
version_of() {
    { gzip -dc "$1" 2>/dev/null || cat "$1"; } | grep -a -o '\[xenstore-stubdom [0-9][^] ]*\]' | head -n 1
}
