# The server fails in every way that can be provoked, while dom0 and guests use it: each time it goes on, one request
# gets EIO, and nothing else is lost.
# nested-xen: --memory 8 --param --test-failures --timeout 900
. /lib/nested.sh

[ "$server" = ours ] || {
    skip "a failure of a stub domain (not with $server)"
    finish
}

# Each panic that was reported is one that was asked for.
no_panic() { went_on_each_time; }

scene
domid=$(guest_domid linux)

step "a request that fails"
for fault in panic page-fault overflow memory hang; do
    xenstore-control fail $fault >/run/fail.log 2>&1
    sed 's/^/        /' /run/fail.log
    went_on "$fault"
done

stop_steady steady-a

step "in the middle of a change"
for looks in 1 2 3 4 5 6; do
    equal "armed" OK "$(xenstore-control fail $looks)"
    # One of these gets EIO, the others what they ask for.
    for n in 1 2 3 4; do xenstore-write /test/value here >/dev/null 2>&1; done
    for n in 1 2 3 4; do xenstore-write "/load/$looks/$n" x >/dev/null 2>&1 && xenstore-rm "/load/$looks" >/dev/null 2>&1; done
    xenstore-rm /load >/dev/null 2>&1
    went_on "look $looks"
done

step "in the books of its own memory"
for books in frames heap window; do
    refuse "fail $books" xenstore-control fail $books
    went_on "$books"
    check "$books: a write of many pages" xenstore-write /test/deep/more/levels/of/it x /test/value here
    check "$books: and its removal" xenstore-rm /test/deep/more
done

step "from outside"
check "xl trigger nmi" xl trigger "$(server_domid)" nmi
went_on "NMI"

step "two hundred in a row"
ports=$(server_ports)
for n in $(seq 2 10); do xenstore-control fail panic >/dev/null 2>&1; done
# Each successor makes its scratch space when it is first needed.
tree >/dev/null
heap=$(server_heap)
for n in $(seq 11 200); do
    case $((n % 8)) in
    0) xenstore-control fail memory >/dev/null 2>&1 ;;
    2) xenstore-control fail heap >/dev/null 2>&1 ;;
    4) xenstore-control fail frames >/dev/null 2>&1 ;;
    5) xenstore-control fail window >/dev/null 2>&1 ;;
    1) xenstore-control fail 0 >/dev/null 2>&1; xenstore-write /test/value here >/dev/null 2>&1 ;;
    *) xenstore-control fail panic >/dev/null 2>&1 ;;
    esac
done
failures=$((failures + 198))
went_on "the last of them"
equal "as many ports as before" "$ports" "$(server_ports)"
grown=$(($(server_heap) - heap))
check "the heap has not grown ($grown bytes)" [ "$grown" -le 4096 ]

step "nobody else noticed"
check "a live update works" xenstore-control live-update /nested/image
refuse "a failure after that, too" xenstore-control fail panic
went_on "after a live update"
xenstore-write /test/watched 1
check "the watch is still there" wait_for 20 no_process $watcher
check "the Linux guest writes" guest_run linux 'xenstore-write data/x 1'
check "a guest's end is seen" xl destroy linux
refuse "its nodes are gone" xenstore-exists "/local/domain/$domid"

step "idle, it sleeps"
cpu=$(server_cpu_seconds)
wakes=$(xenstore-control stats --values | sed -n 's/^hypercalls=//p')
sleep 20
more=$(($(xenstore-control stats --values | sed -n 's/^hypercalls=//p') - wakes))
check "few hypercalls in 20 seconds ($more; CPU $cpu to $(server_cpu_seconds) s)" [ "$more" -lt 100 ]

step "a hang where nothing interrupts"
xenstore-control fail hang-again >/dev/null 2>&1 &
check "Xen's watchdog ends the domain" wait_for 60 eval 'xl dmesg | grep -qi "watchdog timer.*fired"'
server_console | grep 'went on\|took over' | sed 's/^/        /' | tail -n 40
finish
