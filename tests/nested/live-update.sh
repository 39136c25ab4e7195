# The server is replaced again and again while dom0, a Linux guest and test guests work, and nobody notices. Whenever the
# new image is not fit, the old one goes on, with the reason for the administrator.
# nested-xen: --memory 8 --timeout 580
. /lib/nested.sh

[ "$server" = ours ] || {
    skip "live update of a stub domain (not with $server)"
    finish
}

live_update() { xenstore-control live-update "$@" >/run/update.log 2>&1; }
tree() { xenstore-ls -fp / | grep -v '^/local/domain/[1-9][0-9]*/data\|^/lu/load'; }
# How many updates there were. The console's log comes in its own time, so first a line of our own is waited for.
updates() {
    marks=$((${marks:-0} + 1))
    xenstore-control print "mark $$ $marks" >/dev/null
    wait_for 20 eval "server_console | grep -q 'mark $$ $marks'"
    server_console | grep -c 'took over [0-9]'
}

# refused DESCRIPTION TEXT ARGUMENTS...: the update fails with a reason that says so, and the old server goes on.
refused() {
    description=$1 text=$2
    shift 2
    done_before=$(updates)
    refuse "$description" live_update "$@"
    check "$description: the reason" grep -q "$text" /run/update.log
    grep -q "$text" /run/update.log || sed 's/^/        /' /run/update.log
    equal "$description: no update" "$done_before" "$(updates)"
    equal "$description: the store answers" here "$(xenstore-read /lu/value)"
}

step "an update at rest"
xenstore-write /lu/value here /lu/deep/er/still there
xenstore-chmod /lu/deep r0 b5 n7
tree >/run/tree.before
check "xenstore-control live-update" live_update /nested/image
sed 's/^/        /' /run/update.log
equal "one update" 1 "$(updates)"
tree >/run/tree.after
check "the same tree" cmp /run/tree.before /run/tree.after
sound "check"
server_console | grep 'took over' | sed 's/^/        /'
check "another one, with a command line" live_update -c "--nonsense" /nested/image
check "that is the one" wait_for 20 eval "server_console | grep -q -- --nonsense"

step "under load"
make_guest linux
check "a Linux guest" start_guest linux
check "it works in the background" guest_run linux 'n=0
    (while ! xenstore-read data/stop; do
        n=$((n + 1))
        xenstore-write data/n $n && [ "$(xenstore-read data/n)" = $n ] || { xenstore-write data/bad $n; break; }
    done
    xenstore-write data/rounds $n) >/dev/null 2>&1 &'
start_steady steady-a
start_steady steady-b
test-xenstore -r 60 >/run/test-xenstore.log 2>&1 &
tester=$!
before=$(updates)
for n in $(seq 8); do check "update $n" live_update /nested/image; done
equal "eight updates" $((before + 8)) "$(updates)"
check "dom0's test-xenstore ends" wait_for 120 no_process $tester
wait $tester
equal "dom0's test-xenstore noticed nothing" 0 $?
tail -n 3 /run/test-xenstore.log | sed 's/^/        /'
sound "check"

step "what is not fit is refused"
size=$(wc -c </nested/image)
head -c $((size / 2)) /nested/image >/run/half
at=$(strings -t d /nested/image | awk '$2 == "xenstore-stubdom" { print $1 }' | tail -n 1)
# change OFFSET BYTES: a copy of the image with other bytes there, as printf's %b has them.
change() {
    cp /nested/image /run/changed
    printf %b "$2" | dd of=/run/changed bs=1 seek="$1" conv=notrunc 2>/dev/null
}
refused "a shell script" "not an ELF image" /lib/nested.sh
refused "a Linux kernel" "." /guest/kernel
refused "half an image" "cut off" /run/half
refused "a test guest" "no xenstore-stubdom" /guest/test-guest
change "$at" X
refused "a spoiled note" "no xenstore-stubdom" /run/changed
change $((at + 20)) '\0143\0000\0000\0000\0143\0000\0000\0000'
refused "an image from the future" "handover versions 99 to 99" /run/changed
change $((at + 24)) '\0007'
check "an image that knows later versions, too" live_update /run/changed
change 18 '\0267'
refused "an image for ARM" "not for x86-64" /run/changed

step "what fails on trial goes back"
for fault in panic page-fault memory checksum record digest hang overflow panic-in-frames hang-in-frames panic-in-heap \
    overflow-in-heap panic-in-log panic-in-reason; do
    case $fault in
    panic-in-reason) text="as far as this" ;;
    panic*) text="panicked" ;;
    page-fault | overflow*) text="page fault" ;;
    memory) text="memory" ;;
    checksum) text="damaged" ;;
    record) text="record\|stream" ;;
    digest) text="digest" ;;
    hang*) text="not done in time" ;;
    esac
    refused "trial: $fault" "$text" -t 3 -c "--trial-fault $fault" /nested/image
    sed 's/^/        /' /run/update.log
done
check "and a good one afterwards" live_update /nested/image

step "an upload that breaks off"
equal "begun" OK "$(raw_request 0 'live-update\0-b\0000100000\0')"
refuse "another update meanwhile" live_update /nested/image
sed 's/^/        /' /run/update.log
sleep 1
equal "the first one is still there, and aborted" OK "$(raw_request 0 'live-update\0-a\0')"
check "then it works" live_update /nested/image

step "nobody noticed"
domid=$(guest_domid linux)
check "the Linux guest is told to stop" xenstore-write "/local/domain/$domid/data/stop" 1
check "it has stopped" wait_for 30 xenstore-read "/local/domain/$domid/data/rounds"
echo "        $(xenstore-read "/local/domain/$domid/data/rounds") rounds"
refuse "no round went wrong" xenstore-read "/local/domain/$domid/data/bad"
stop_steady steady-a
stop_steady steady-b
sound "check"
xenstore-control memreport | sed 's/^/        /'
finish
