# Helpers for scripts that scripts/nested-xen runs in dom0 (busybox sh); there: . /lib/nested.sh
#
# A script makes checks and skips, and ends with `finish`, whose status says whether all went well.

passed=0 failed=0 skipped=0
logs=/var/log/xen/console
# server, memory, maxmem: what this boot was asked for. Not on the hosts of tests/hosts, which use this file, too.
server=none
[ ! -e /nested/settings ] || . /nested/settings

step() { echo "== $*"; }
pass() { passed=$((passed + 1)); echo "ok      $*"; }
fail() { failed=$((failed + 1)); echo "FAIL    $*"; }
# skip DESCRIPTION: what this server cannot show is said and counted, never passed over.
skip() { skipped=$((skipped + 1)); echo "skip    $*"; }

# check DESCRIPTION COMMAND...: the command has to succeed within two minutes.
check() { expect 0 "$@"; }

# refuse DESCRIPTION COMMAND...: it has to fail, but by itself and not because it hangs.
refuse() { expect refused "$@"; }

expect() {
    expected=$1 description=$2
    shift 2
    limited 120 "$@" >/run/check.log 2>&1
    result=$?
    case $expected:$result in
    0:0) pass "$description" ;;
    *:143 | *:124) fail "$description: '$*' hangs" ;;
    refused:0) fail "$description: '$*' was not refused" ;;
    refused:*) pass "$description" ;;
    *) fail "$description: '$*' gives status $result" ;;
    esac
    case $expected:$result in 0:0 | refused:[1-9]*) ;; *) cut -c 1-160 /run/check.log | sed 's/^/        /' ;; esac
}

# sound [DESCRIPTION]: the store's own check finds nothing. xenstore-control succeeds with findings, too, and prints them.
sound() { check "${1:-the store's own check finds nothing}" finds_nothing; }

finds_nothing() {
    findings=$(timeout 120 xenstore-control check) || return
    echo "$findings"
    [ "$findings" = OK ]
}

# ours DESCRIPTION: true if our server runs; the check that follows makes sense for no other.
ours() {
    [ "$server" = ours ] && return
    skip "$1 (not with $server)"
    false
}

# limited SECONDS COMMAND...: with a time limit, except if the command is a function.
limited() {
    limit=$1
    shift
    if type "$1" | grep -q function; then "$@"; else timeout "$limit" "$@"; fi
}

# stretched SECONDS: as long as that takes on this machine just now. The host tells the pace, in tenths.
stretched() {
    local tenths=10
    [ ! -s /run/pace ] || read -r tenths </run/pace
    echo $(($1 * tenths / 10))
}

# As a limit holds from the start on, and the machine may become busy later, it is twice what it says.
timeout() {
    local patient
    patient=$(stretched $((2 * $1)))
    shift
    command timeout "$patient" "$@"
}

# equal DESCRIPTION EXPECTED ACTUAL
equal() {
    if [ "$2" = "$3" ]; then pass "$1"; else fail "$1: expected '$2', got '$3'"; fi
}

# wait_for SECONDS COMMAND...: repeats the command until it succeeds.
wait_for() {
    local begun longest=$1
    begun=$(seconds)
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(seconds)" -lt $((begun + $(stretched "$longest"))) ] || return 1
        sleep 0.2
    done
}

seconds() { cut -d . -f 1 /proc/uptime; }

finish() {
    if [ "$server" = ours ]; then
        check "the stub domain reported no panic" no_panic
    fi
    echo "== $passed passed, $failed failed, $skipped skipped"
    [ $failed = 0 ]
    exit
}

# ---- the server ------------------------------------------------------------------------------------

server_domid() { xenstore-read /tool/xenstored/domid 2>/dev/null; }

# What the stub domain has printed so far.
server_console() { tr -d '\r' <$logs/guest-Xenstore.log; }

no_panic() { [ -s $logs/guest-Xenstore.log ] && ! grep -qiE '^(panic|fatal|failure)' $logs/guest-Xenstore.log; }

server_ports() { lsevtchn "$(server_domid)" | wc -l; }

# MiB that the stub domain has.
server_memory() { xl list Xenstore | awk 'NR == 2 { print $3 }'; }

# Bytes of heap in use, as our memreport tells them.
server_heap() { xenstore-control memreport | sed -n 's/^heap: used \([0-9]*\).*/\1/p'; }

server_cpu_seconds() { xl list Xenstore | awk 'NR == 2 { print $6 }'; }

node_count() { xenstore-ls -f / | wc -l; }

# is_introduced DOMID: the server knows a connection of this domain.
is_introduced() { xenstore-control quota "$1" >/dev/null 2>&1; }

# ---- the Debian package ----------------------------------------------------------------------------

# debian_host: what a Debian host has, for --package. dom0 is a busybox with the real dpkg, dash, start-stop-daemon and
# /etc/init.d/xen of a Debian host. Not real: there is no systemd, whose unit does no more than call that script; and
# /etc/default/xen, which ucf would put there, is copied.
debian_host() {
    mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers /etc/default /etc/xen
    touch /var/lib/dpkg/status /var/lib/dpkg/available
    cp /usr/share/xen-utils-common/default.xen /etc/default/xen
    echo 'XENCONSOLED_ARGS="--log=all"' >>/etc/default/xen
    ln -sf /usr/bin/dash /bin/sh
    export PATH="/usr/sbin:/sbin:$PATH"
}

# run COMMAND...: shows what the command says as an administrator would see it, and keeps it in /run/output.log.
run() {
    echo "\$ $*"
    "$@" >/run/output.log 2>&1
    result=$?
    sed 's/^/  /' /run/output.log
    return $result
}

said() { grep -qF -- "$1" /run/output.log; }

# reads FILE LINE...: the guide of the package has these lines, and so has what was seen, but for numbers.
reads() {
    seen=$1
    shift
    for line in "$@"; do
        check "the guide has: $line" grep -qF -- "$line" /usr/share/doc/xenstore-stubdom/administration.md
        plain "$seen" >/run/plain
        check "and that was seen" grep -qF -- "$(echo "$line" | plain)" /run/plain
    done
}
plain() { sed 's/[0-9][0-9]*/N/g' "$@"; }

# ---- guests ----------------------------------------------------------------------------------------

# make_guest NAME [MB [LINE...]]: an xl config for a small PVH Linux guest; LINEs are added to it.
make_guest() {
    mkdir -p /run/guests
    {
        echo "name='$1'"
        echo "memory=${2:-96}"
        echo "type='pvh'"
        echo "kernel='/guest/kernel'"
        echo "ramdisk='/guest/initramfs'"
        # What is switched off takes time in emulation and shows nothing here.
        echo "cmdline='console=hvc0 rdinit=/init loglevel=1 pci=off rcupdate.rcu_expedited=1 ipv6.disable=1" \
            "cryptomgr.notests apparmor=0 init_on_alloc=0'"
        echo "vcpus=1"
        [ $# -lt 2 ] || shift
        shift
        for line in "$@"; do echo "$line"; done
    } >"/run/guests/$1.cfg"
}

# make_test_guest NAME CMDLINE: an xl config for our own test guest.
make_test_guest() {
    # It is kept when it has ended, so that what became of its connection can be looked at.
    make_guest "$1" 16 "kernel='/guest/test-guest'" "ramdisk=''" "cmdline='$2'" "on_poweroff='preserve'"
}

guest_log() { tr -d '\r' 2>/dev/null <"$logs/guest-$1.log"; }
guest_domid() { xl domid "$1" 2>/dev/null; }

# times_ready NAME: how often guests of this name have come up.
times_ready() { guest_log "$1" | grep -c '^guest: ready'; }

# start_guest NAME: creates it and waits until it takes requests.
start_guest() {
    before=$(times_ready "$1")
    timeout 120 xl create -q "/run/guests/$1.cfg" || return
    wait_until_ready "$1" $((before + 1))
}

wait_until_ready() { wait_for 120 more_ready "$@"; }
more_ready() { [ "$(times_ready "$1")" -ge "$2" ]; }

# guest_run NAME SCRIPT: runs SCRIPT in the guest, prints what it prints, returns its status. It has $guest_patience
# seconds, 60 if that is not set.
guest_run() {
    # Not a variable: requests of background processes count, too.
    echo >>/run/requests
    number=$(wc -l </run/requests)
    tty=$(xenstore-read "/local/domain/$(guest_domid "$1")/console/tty") || return 125
    echo "$number $(printf '%s' "$2" | base64 | tr -d '\n')" >"$tty"
    wait_for "${guest_patience:-60}" guest_has_ended "$1" "$number" || {
        echo "guest_run: no answer from $1; the end of its console:"
        guest_end "$1"
        return 124
    }
    guest_log "$1" | awk -v n="$number" '
        $1 == "guest:" && $2 == "end" && $3 == n { exit }
        inside
        $1 == "guest:" && $2 == "begin" && $3 == n { inside = 1 }'
    return "$(guest_log "$1" | awk -v n="$number" '$1 == "guest:" && $2 == "end" && $3 == n { print $4 }')"
}

# guest_end NAME: the end of its console, or all of it from where its kernel reports a crash.
guest_end() {
    guest_log "$1" | awk '/BUG:|Oops:|general protection|Kernel panic|invalid opcode/ { crash = 1 }
        crash && ++n <= 100
        { last[NR % 5] = $0 }
        END { for (i = NR + 1; !crash && i <= NR + 5; i++) if (i % 5 in last) print last[i % 5] }'
}

guest_has_ended() { guest_log "$1" | grep -q "^guest: end $2 "; }

# wait_gone NAME: until no domain has this name, as after a shutdown.
wait_gone() { wait_for 60 no_domain "$1"; }
no_domain() { ! xl domid "$1" >/dev/null 2>&1; }

# nothing_left DOMID: checks that there is no node and no connection of a domain that is gone.
nothing_left() {
    gone=$1
    refuse "domain $gone: /local/domain/$gone is gone" xenstore-exists "/local/domain/$gone"
    equal "domain $gone: no other node of it is left" "" \
        "$(xenstore-ls -f / | grep -E "/(libxl|backend/[a-z]*)/$gone(/| |$)")"
    refuse "domain $gone: its connection is gone" is_introduced "$gone"
}

# ---- below the tools -------------------------------------------------------------------------------

# raw_request TYPE PAYLOAD: sends one request on dom0's ring and prints the reply's payload, such as the
# error's name, which the tools do not show. PAYLOAD is given as printf's %b takes it.
raw_request() {
    printf %b "$2" >/run/payload
    length=$(wc -c </run/payload)
    {
        printf %b "$(printf '\\0%o\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0%o\\0%o\\0\\0' "$1" $((length % 256)) $((length / 256)))"
        cat /run/payload
    } >/run/request
    # One process has to hold the device open from the request to the reply.
    timeout 30 sh -c 'exec 3<>/dev/xen/xenbus; cat /run/request >&3; dd bs=4096 count=1 <&3 2>/dev/null' |
        tail -c +17 | tr -d '\0'
}

no_process() { ! kill -0 "$1" 2>/dev/null; }

# start_steady NAME, stop_steady NAME: a test guest that works all the time, and says in the end whether anything went wrong.
start_steady() {
    make_guest "$1" 16 "kernel='/guest/test-guest'" "ramdisk=''" "cmdline='role=steady'" "on_poweroff='preserve'"
    check "$1: xl create" xl create -q "/run/guests/$1.cfg"
}

stop_steady() {
    check "$1 is told to stop" xenstore-write "/local/domain/$(guest_domid "$1")/data/stop" 1
    wait_for 60 eval "guest_log '$1' | grep -q '^verdict: '"
    guest_log "$1" | grep '^verdict: ' | sed "s/^/        $1: /"
    equal "$1 noticed nothing" "verdict: pass" "$(guest_log "$1" | grep -o '^verdict: [a-z]*')"
}

# ---- a server that fails ---------------------------------------------------------------------------

# What every client sees, but for what guests of a scene write all the time, and what changes with the domain: its console
# and its memory.
tree() {
    xenstore-ls -fp / |
        grep -v "^/local/domain/[1-9][0-9]*/data\|^/load\|^/local/domain/$store/\(console\|memory\)/\|/tty = "
}
same_tree() { diff /run/tree.before /run/tree.after; }
restarts() { xenstore-control stats --values | sed -n 's/^restarts=//p'; }
answers() { [ "$(timeout 5 xenstore-read /test/value)" = here ]; }

# scene: what has to be as before after whatever happens to the server: nodes, guests, of which one works all the time, and a
# watch. Sets store, watcher.
scene() {
    failures=0
    store=$(server_domid)
    xenstore-write /test/value here /test/deep/er/still there
    xenstore-chmod /test/deep r0 b5 n7
    start_steady steady-a
    for name in linux "$@"; do
        make_guest "$name"
        check "$name: a Linux guest" start_guest "$name"
    done
    xenstore-watch -n 2 /test/watched >/run/watch.log 2>&1 &
    watcher=$!
    sleep 1
    tree >/run/tree.before
}

# as_before WHAT: the server answers, and is as it was.
as_before() {
    check "$1: the store answers" wait_for 20 answers
    equal "$1: of the same domid" "$store" "$(server_domid)"
    tree >/run/tree.after
    check "$1: the same tree" same_tree
    sound "$1: check"
}

# went_on WHAT: the server has gone on after one more failure, and is as it was.
went_on() {
    failures=$((failures + 1))
    as_before "$1"
    equal "$1: restarts" $failures "$(restarts)"
}

# went_on_each_time: each failure that was reported is one that was asked for.
went_on_each_time() { [ "$(server_console | grep -c 'went on after a failure')" = $failures ]; }

# start_guard [OPTION...]: its journal is /run/guard.log.
start_guard() {
    xenstore-guard "$@" 2>>/run/guard.log &
    guard=$!
}
guard_says() { grep -q -- "$1" /run/guard.log; }
