# Helpers for scripts that scripts/debian-host runs on a real Debian host, each time it has come up: . /host/lib.sh
#
# check, refuse, equal and the helpers for guests are those of tests/nested/lib.sh. What was counted outlives a reboot.

ln -sfn /host/guest /guest
. /host/nested-lib.sh
counts=/var/lib/host-run/counts
[ ! -e $counts ] || . $counts

save_counts() { echo "passed=$passed failed=$failed skipped=$skipped" >$counts; }

# reboot_host: as an administrator does. The script runs again, with $boot one higher.
reboot_host() {
    save_counts
    date +%s >/var/lib/host-run/asked
    touch /run/reboot-host
    sync
    exit 0
}

finish() {
    echo "== $passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
    exit
}

# run COMMAND...: shows what the command says as an administrator would see it, and keeps it in /run/output.log.
run() {
    echo "\$ $*"
    "$@" >/run/output.log 2>&1 </dev/null
    result=$?
    sed 's/^/  /' /run/output.log
    return $result
}
said() { grep -qF -- "$1" /run/output.log; }

# went_down_in SECONDS: how long the last shutdown took, from the request to the last line of its journal.
went_down_in() {
    asked=$(cat /var/lib/host-run/asked)
    last=$(journalctl -b -1 -o short-unix -n 1 --no-pager | sed -n 's/^\([0-9]*\)\..*/\1/p')
    took=$((last - asked))
    if [ $took -le "$(stretched "$1")" ]; then pass "the host went down in $took s"; else fail "the host went down in $took s, not $1"; fi
}

# Lines of the journal of this boot that a reader would take for an error of ours. The three of libxl are explained by the
# one behind them.
our_errors() {
    {
        journalctl -b -p err --no-pager -q | sed 's/^.*\]: //'
        journalctl -b --no-pager -q -o cat -u xen.service -u xendomains.service | grep -iE 'error|fail|warn|cannot|could not'
    } | grep -iE 'xen' | sort -u |
        grep -vE '^libxl: error: .*([Ff]ailed to get (own )?domid|9pfs)|^Host path "/var/lib/xen/xenstore"|about a 9pfs device' >/run/errors
}

# sound WHEN: the state of the host.
sound() {
    wait_for 120 eval '[ "$(systemctl is-system-running)" != starting ]'
    equal "$1: no unit has failed" "" "$(systemctl --failed --no-legend --plain | cut -d ' ' -f 1 | xargs)"
    our_errors
    equal "$1: the journal has no error of ours" "" "$(cat /run/errors)"
}

# stub_domain WHEN BY: it is the store of this host, alone.
stub_domain() {
    check "$1: xen.service is up" systemctl is-active xen.service
    check "$1: xenstore-stubdom status" run xenstore-stubdom status
    check "$1: it names the domain" said "now:       domain 1, [xenstore-stubdom "
    check "$1: and who builds it" said "next boot: the stub domain, by ${2:-init-xenstore-domain}"
    check "$1: the store answers" xenstore-write /test/alive "$1"
    equal "$1: one domain, no daemon" "1 0" "$(xl list | grep -c '^Xenstore ') $(pgrep -xc 'o?xenstored')"
    equal "$1: dom0 has its name" Domain-0 "$(xenstore-read /local/domain/0/name)"
    check "$1: xenconsoled runs" pgrep -x xenconsoled
    check "$1: its console is logged" wait_for 20 grep -q 'serving in domain' /var/log/xen/console/guest-Xenstore.log
    equal "$1: no daemon holds a pipe of ours" "" "$(held_pipes)"
}

# daemon_serves WHEN: the host's xenstore is a daemon.
daemon_serves() {
    check "$1: xen.service is up" systemctl is-active xen.service
    check "$1: a daemon runs" pgrep -x 'o?xenstored'
    check "$1: the store answers" xenstore-write /test/alive "$1"
    equal "$1: there is no xenstore domain" 0 "$(xl list | grep -c '^Xenstore ')"
}

# Pipes of which what the start of the store leaves behind holds one end. Both ends are its own: libxenstore makes such.
held_pipes() {
    for process in $(pgrep -x 'xen-9pfsd|xenconsoled'); do
        ls -l "/proc/$process/fd" 2>/dev/null | grep -o 'pipe:.*' | sort | uniq -u
    done
}

# guest_life NAME: a PVH Linux guest from its start to its end.
guest_life() {
    make_guest "$1"
    check "xl create" start_guest "$1"
    equal "the guest reads its name" "$1" "$(guest_run "$1" 'xenstore-read name')"
    check "it writes" guest_run "$1" 'xenstore-write data/mine 1 && xenstore-read data/mine'
    gone=$(guest_domid "$1")
    check "xl shutdown" timeout 120 xl shutdown -w "$1"
    # The xl that created it clears away behind it.
    check "it is gone" wait_gone "$1"
    refuse "/local/domain/$gone is gone" xenstore-exists "/local/domain/$gone"
}

# ---- the guard -------------------------------------------------------------------------------------

guard_unit=xenstore-stubdom-guard.service
guard_pid() { systemctl show -P MainPID $guard_unit; }
guard_runs() { pid=$(guard_pid) && [ "${pid:-0}" != 0 ] && kill -0 "$pid"; }
# guard_told TEXT: how often, in the journal of this boot.
guard_told() { journalctl -b --no-pager -q -o cat -u $guard_unit | grep -c -- "$1"; }
revived_more() { [ "$(guard_told 'serves again')" -gt "$1" ]; }
failures() { xenstore-control stats --values | sed -n 's/^restarts=//p'; }

# shut_down CODE: Xen shuts the store's domain down with this reason: 1 is a reboot (as a triple fault is told), 3 a crash.
shut_down() {
    PYTHONPATH=$(/usr/lib/xen-common/bin/xen-dir)/lib/python python3 -c "
from xen.lowlevel.xc import xc
xc().domain_shutdown($(sed -n 's/^domid://p' /run/xen/xenstored.pid), $1)"
}

# revived CODE: that is done to it, and this waits until the guard has it serve again.
revived() {
    revivals=$(guard_told 'serves again')
    shut_down "$1" && wait_for 60 revived_more "$revivals"
}

# guard_helps WHEN: under systemd, once a boot. The store's domain is shut down, and everything goes on: clients in dom0, a guest, the toolstack.
guard_helps() {
    check "$1: the guard's unit is enabled" systemctl is-enabled $guard_unit
    check "$1: and up" systemctl is-active $guard_unit
    check "$1: status names its process" run xenstore-stubdom status
    check "$1: that is the unit's" said "guard:     process $(guard_pid)"
    check "$1: it found the domain" [ "$(guard_told 'watching domain 1, the xenstore')" != 0 ]
    check "$1: its memory is locked" grep -q '^VmLck:[[:space:]]*[1-9]' "/proc/$(guard_pid)/status"
    equal "$1: it is not what is ended for want of memory" -1000 "$(cat "/proc/$(guard_pid)/oom_score_adj")"

    make_guest served
    check "$1: a guest" start_guest served
    xenstore-write /test/kept "$1"
    xenstore-watch -n 2 /test/watched >/run/watch.log 2>&1 &
    watcher=$!
    check "$1: a watch" wait_for 20 grep -q . /run/watch.log
    before=$(failures)
    check "$1: it is shut down with the reason crash, and serves again" revived 3
    equal "$1: the guard says so" 1 "$(guard_told 'was shut down (crash): revived, try 1')"
    equal "$1: the store answers" "$1" "$(timeout 20 xenstore-read /test/kept)"
    equal "$1: one failure more" $((before + 1)) "$(failures)"
    equal "$1: the guest's console, and its store" served "$(guest_run served 'xenstore-write data/after 1 && xenstore-read name')"
    check "$1: xl list" run xl list
    check "$1: it names the guest" said served
    xenstore-write /test/watched 1
    check "$1: the watch has been told" wait_for 20 eval "! kill -0 $watcher"

    old=$(guard_pid)
    systemctl kill -s KILL $guard_unit
    check "$1: it is shut down with the reason reboot while the guard is killed" revived 1
    check "$1: systemd has started another" guard_runs
    refuse "$1: it is another" [ "$(guard_pid)" = "$old" ]
    equal "$1: two failures more" $((before + 2)) "$(failures)"
    # A fault in the domain, which it takes itself: the guard has nothing to do.
    check "$1: xen-hvmcrash" xen-hvmcrash "$(sed -n 's/^domid://p' /run/xen/xenstored.pid)"
    equal "$1: three failures more" $((before + 3)) "$(failures)"
    equal "$1: the last without the guard" 2 "$(guard_told 'serves again')"
    guest_life "after-guard"
    check "$1: xl shutdown" timeout 120 xl shutdown -w served
    check "$1: it is gone" wait_gone served
    equal "$1: the store's own check" OK "$(timeout 120 xenstore-control check)"
    journalctl -b --no-pager -q -o short-monotonic -u $guard_unit
    sound "$1: after the crashes"
}

# ---- HVM guests ------------------------------------------------------------------------------------

# hvm_guest NAME LINE...
hvm_guest() {
    make_guest "$1" 256
    # Without PCI there are no grant tables in an HVM guest, and the first driver that takes one, xenkbd, ends its kernel.
    sed -i "s/^type=.*/type='hvm'/; s/^kernel=.*/kernel='\/guest\/vmlinuz'/; s/console=hvc0/console=ttyS0/; s/ pci=off//" "/run/guests/$1.cfg"
    name=$1
    shift
    # A guest that panics reboots by itself, again and again.
    printf '%s\n' "serial='pty'" "vnc=0" "nographic=1" "on_reboot='preserve'" "$@" >>"/run/guests/$name.cfg"
}

# follow_serial NAME DOMID: what its serial port says, kept as it comes. `xl console` without a terminal spins.
follow_serial() {
    cat "$(xenstore-read "/local/domain/$2/serial/0/tty")" >"/run/serial.$1" 2>&1 &
}

# alive NAME: it was not shut down, has not crashed, and is not on its way out.
alive() { xl list "$1" | awk 'NR == 2 { print $5 }' | grep -q '^...---$'; }

said_or_over() { grep -aqE "$says" "/run/serial.$1" || ! alive "$1"; }

# up FIRMWARE SECONDS: creates a guest with it, and waits for what it says on the serial port.
up() {
    step "$1"
    hvm_guest "$1" "bios='$1'"
    # It is not waited for by xl's own clock: that is the first line on the serial port.
    check "$1: xl create" timeout 300 xl create -q "/run/guests/$1.cfg"
    domid=$(guest_domid "$1")
    follow_serial "$1" "$domid"
    check "$1: its device model runs" xenstore-exists "/local/domain/0/device-model/$domid/state"
    equal "$1: its device model says so" running "$(xenstore-read "/local/domain/0/device-model/$domid/state")"
    says='guest: ready'
    # Debian's OVMF takes no kernel from outside on Xen: that its firmware comes up and finds nothing to boot is what there is to see.
    [ "$1" = seabios ] || says='BdsDxe|UEFI|Shell'
    wait_for "$2" said_or_over "$1"
    grep -aqE "$says" "/run/serial.$1"
    came=$?
    tr -d '\r' <"/run/serial.$1" | tail -n "$([ $came = 0 ] && echo 5 || echo 60)"
    xl list "$1"
    tail -n 3 "/var/log/xen/qemu-dm-$1.log"
    return $came
}

# As with guest_life, the xl that created it clears away behind it.
gone() {
    check "$1: it is gone" wait_gone "$1"
    refuse "$1: /local/domain/$domid is gone" xenstore-exists "/local/domain/$domid"
    check "$1: no device model is left" wait_for 60 eval "! pgrep -f 'xen-domid $domid '"
}
