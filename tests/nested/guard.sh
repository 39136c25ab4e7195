# The store's domain is shut down in every way that ends it, while dom0 and guests use it. The guard revives it each time.
# nested-xen: --memory 8 --param --test-failures --crashes --timeout 900
. /lib/nested.sh

[ "$server" = ours ] || {
    skip "a stub domain that is revived (not with $server)"
    finish
}

[ -x /usr/bin/xenstore-guard ] || { fail "there is no /usr/bin/xenstore-guard: cargo guard builds it" && finish; }

# Each failure that was reported is one that was asked for.
no_panic() { went_on_each_time; }

# revived REASON: the guard's last two lines say so.
revived() {
    wait_for 20 eval 'tail -n 1 /run/guard.log | grep -q "serves again"'
    check "the guard tells of it: $1" told "$1"
}
told() { tail -n 2 /run/guard.log | head -n 1 | grep -q "was shut down ($1): revived, try 1, "; }

# crash FAULT: the server ends with it; whoever asks for that waits for the EIO.
crash() {
    xenstore-control fail "$1" >/run/fail.log 2>&1 &
    asked=$!
}

# silent FAULT WHAT: the server runs and serves nobody, until the guard notices that a request of dom0's waits.
silent() {
    crash "$1"
    sleep 1
    timeout 200 xenstore-read /test/value >/run/read.log 2>&1 &
    check "$1: the guard notices" wait_for 300 guard_says "$2: it gets an NMI"
    went_on "$1"
    check "$1: and that it is over" wait_for 20 guard_says 'serves dom0 again'
}

start_guard
scene dying
dying=$(guest_domid dying)

step "shut down"
ports=$(server_ports)
for fault in triple-fault:reboot shutdown:crash; do
    crash ${fault%:*}
    went_on "${fault%:*}"
    revived "${fault#*:}"
    check "who was served then is answered" wait_for 20 no_process $asked
done

step "from outside"
check "xen-hvmcrash" xen-hvmcrash "$(server_domid)"
went_on "xen-hvmcrash"

step "the guard dies behind each of its steps"
for at in counted set resumed; do
    kill $guard
    start_guard --end-behind $at
    crash triple-fault
    check "it ends behind: $at" wait_for 20 no_process $guard
    start_guard
    went_on "$at"
done

step "on trial"
# The old image is the one that is revived.
refuse "a new image that loses the processor" xenstore-control live-update -c "--test-failures --trial-fault triple-fault" /nested/image
went_on "lost on trial"
revived reboot

stop_steady steady-a

# Longer than the guest above waits for a reply.
step "silence"
silent deaf 'sleeps, and has left a request of dom0.s unread for [0-9]* s'
silent hang-masked 'has worked for 30 s and left a request of dom0.s unread'
equal "nothing else was taken for silence" 2 "$(grep -c 'it gets an NMI' /run/guard.log)"

step "a hang where nothing interrupts"
crash hang-again
check "Xen's watchdog ends it" wait_for 60 eval 'xl dmesg | grep -qi "watchdog timer.*fired"'
went_on "hang-again"
revived watchdog

step "somebody dies meanwhile"
xenstore-watch -n 2 @releaseDomain >/run/release.log 2>&1 &
released=$!
check "@releaseDomain is watched" wait_for 20 grep -q . /run/release.log
kill $guard
crash shutdown
sleep 2
check "the release is not told yet" kill -0 $released
check "a guest crashes" xen-hvmcrash "$dying"
sleep 5
start_guard
failures=$((failures + 1))
check "the store answers" wait_for 20 answers
check "the release is told" wait_for 60 no_process $released
check "the dead guest is taken away" wait_gone dying
refuse "its nodes are gone" xenstore-exists "/local/domain/$dying"
sound
tree >/run/tree.before

step "nobody else noticed"
equal "ports: those of one guest less" $((ports - 1)) "$(server_ports)"
check "a live update works" xenstore-control live-update /nested/image
crash triple-fault
went_on "after a live update"
xenstore-write /test/watched 1
check "the watch is still there" wait_for 20 no_process $watcher
check "the Linux guest writes" guest_run linux 'xenstore-write data/x 1'

step "what cannot be mended"
crash doubt
check "it is tried again" wait_for 30 grep -q 'after try 3: the next one in 5 s' /run/guard.log
check "and then given up" wait_for 200 grep -q 'again after 5 tries: given up' /run/guard.log
server_console | grep 'went on\|took over\|revived\|cannot go on' | sed 's/^/        /' | tail -n 40
sed 's/^/        /' /run/guard.log
finish
