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

# hostile_guest NAME ROLE: starts one that stays when it has ended.
hostile_guest() {
    make_guest "$1" 16 "kernel='/guest/test-guest'" "ramdisk=''" "cmdline='role=$2'" \
        "on_poweroff='preserve'" "on_crash='preserve'"
    check "$1: xl create" xl create -q -e "/run/guests/$1.cfg"
}

has_verdict() { guest_log "$1" | grep -q '^verdict: '; }

destroy_hostile() {
    for domid in $(xl list | awk '$1 ~ /^h-/ { print $2 }'); do
        check "xl destroy $domid" xl destroy "$domid"
    done
    check "no hostile guest is left" wait_for 60 none_left
}
none_left() { ! xl list | grep -q '^h-'; }

write_and_read() {
    for i in $(seq 20); do
        xenstore-write /h/x $i && [ "$(xenstore-read /h/x)" = $i ] || return 1
    done
}

make_guest honest
check "an honest Linux guest" start_guest honest
check "it writes" guest_run honest 'xenstore-write data/x 0'

step "tables grow to their size"
# The store keeps the tables that so many guests need at once; the next wave must not need more.
for n in $(seq 20); do
    case $n in
    1 | 2) hostile_guest "h-first-$n" greedy ;;
    3 | 4) hostile_guest "h-first-$n" mute ;;
    *) hostile_guest "h-first-$n" half=8 ;;
    esac
done
for n in 1 2 3 4; do check "a verdict" wait_for 60 has_verdict "h-first-$n"; done
destroy_hostile
ours "ports and heap come back" && {
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
        hostile_guest "h-$(echo "$role" | tr = -)-$copy" "$role"
        count=$((count + 1))
    done
done
equal "so many hostile guests" 20 $count

step "the honest ones meanwhile"
check "the honest guest writes and reads 50 times" guest_run honest \
    'for i in $(seq 50); do xenstore-write data/x $i && [ "$(xenstore-read data/x)" = $i ] || exit 1; done'
check "dom0 writes and reads" write_and_read
check "xenstore-control check" xenstore-control check

step "verdicts"
for role in $judges; do
    name="h-$(echo "$role" | tr = -)-a"
    check "$role: a verdict" wait_for 90 has_verdict "$name"
    equal "$role: the verdict" "verdict: pass" "$(guest_log "$name" | grep -o '^verdict: [a-z]*' | head -n 1)"
    guest_log "$name" | sed 's/^/        /'
done
check "the honest guest goes on" guest_run honest 'xenstore-write data/x last'
if ours "the server says why it gave rings up"; then
    check "bad-index is on the console" grep -q "its ring indices are impossible" $logs/guest-Xenstore.log
    check "oversize is on the console" grep -q "announced 4097 bytes" $logs/guest-Xenstore.log
fi

step "afterwards"
destroy_hostile
xenstore-rm /h
equal "as many nodes as before" "$nodes" "$(node_count)"
ours "ports and heap come back" && {
    equal "as many ports" "$ports" "$(server_ports)"
    after=$(server_heap)
    # The wave has more roles than the first one, so some table may have grown once more.
    check "heap in use: $heap before, $after now" [ "$after" -le $((heap + heap / 20)) ]
}
check "xenstore-control check" xenstore-control check
check "the honest guest still answers" guest_run honest 'xenstore-read name'
finish
