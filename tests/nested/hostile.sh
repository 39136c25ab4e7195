# Twenty guests that do all they can to the server at once: an honest guest and dom0 go on, and when the twenty
# are gone, nothing of them is left.
# nested-xen: --memory 16 --timeout 600
. /lib/nested.sh

[ -e /guest/test-guest ] || {
    fail "the test guest is not built (cargo stubdom)"
    finish
}

roles="bad-index oversize half=8 half=100 crash racing scribble storm endless greedy mute"
# These end by themselves and judge themselves; the others are judged from here only.
judges="bad-index oversize half=8 half=100 racing scribble storm endless greedy mute"

# One guest before: what the first guest of a boot leaves on purpose should not count.
make_test_guest first role=hello
check "a first guest" xl create -q /run/guests/first.cfg
check "it is gone" wait_gone first
make_guest honest
check "an honest Linux guest" start_guest honest
ours "ports, heap and nodes come back" && {
    ports=$(server_ports)
    heap=$(server_heap)
}
nodes=$(node_count)

step "the hostile guests"
count=0
for role in $roles; do
    for copy in a b; do
        # Ten roles twice; the last one, which keeps its memory, once.
        [ "$role$copy" != bad-indexb ] && [ "$role$copy" != oversizeb ] || continue
        name="h-$role-$copy"
        name=$(echo "$name" | tr = -)
        make_guest "$name" 16 "kernel='/guest/test-guest'" "ramdisk=''" "cmdline='role=$role'" \
            "on_poweroff='preserve'" "on_crash='preserve'"
        check "$name: xl create" xl create -q -e "/run/guests/$name.cfg"
        count=$((count + 1))
    done
done
equal "so many hostile guests" 20 $count

step "the honest ones meanwhile"
check "the honest guest writes and reads 50 times" guest_run honest \
    'for i in $(seq 50); do xenstore-write data/x $i && [ "$(xenstore-read data/x)" = $i ] || exit 1; done'
check "dom0 writes and reads" eval 'for i in $(seq 20); do xenstore-write /h/x $i && [ "$(xenstore-read /h/x)" = $i ] || exit 1; done'
check "xenstore-control check" xenstore-control check

step "verdicts"
for role in $judges; do
    name="h-$(echo "$role" | tr = -)-a"
    check "$role: a verdict" wait_for 90 eval "guest_log '$name' | grep -q '^verdict: '"
    equal "$role: the verdict" "verdict: pass" "$(guest_log "$name" | grep -o '^verdict: [a-z]*' | head -n 1)"
    guest_log "$name" | sed 's/^/        /'
done
check "the honest guest goes on" guest_run honest 'xenstore-write data/x last'
if ours "the server says why it gave rings up"; then
    check "bad-index is on the console" grep -q "its ring indices are impossible" $logs/guest-Xenstore.log
    check "oversize is on the console" grep -q "announced 4097 bytes" $logs/guest-Xenstore.log
fi

step "afterwards"
for domid in $(xl list | awk '$1 ~ /^h-/ { print $2 }'); do
    check "xl destroy $domid" xl destroy "$domid"
done
check "they are gone" wait_for 60 eval '! xl list | grep -q "h-"'
xenstore-rm /h
equal "as many nodes as before" "$nodes" "$(node_count)"
ours "ports, heap and nodes come back" && {
    equal "as many ports" "$ports" "$(server_ports)"
    equal "heap in use" "$heap" "$(server_heap)"
}
check "xenstore-control check" xenstore-control check
check "the honest guest still answers" guest_run honest 'xenstore-read name'
finish
