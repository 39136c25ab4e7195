# Twenty guests that do all they can to the server at once: an honest guest and dom0 go on, and when the twenty
# are gone, nothing of them is left.
# nested-xen: --memory 16 --timeout 900
. /lib/nested.sh

[ -e /guest/test-guest ] || {
    fail "the test guest is not built (cargo stubdom)"
    finish
}

# Those that spin do so until they are told to stop, so all of them spin while the honest ones work.
busy="racing scribble storm endless"
roles="bad-index oversize half=8 half=100 crash greedy mute $busy"

# One emulated processor for all of them: a program that starts in the honest guest takes seconds.
guest_patience=300

# hostile_guest NAME ROLE: builds one that stays when it has ended, and does not start it yet.
hostile_guest() {
    make_guest "$1" 16 "kernel='/guest/test-guest'" "ramdisk=''" "cmdline='role=$2'" \
        "on_poweroff='preserve'" "on_crash='preserve'"
    check "$1: xl create" xl create -q -e -p "/run/guests/$1.cfg"
}

# All but crash end by themselves and judge themselves; that one is judged from here only.
judges="bad-index oversize half=8 half=100 greedy mute $busy"

# tell NAME: types on its console.
tell() { echo stop >"$(xenstore-read "/local/domain/$(guest_domid "$1")/console/tty")"; }

has_verdict() { guest_log "$1" | grep -q '^verdict: '; }

destroy_hostile() {
    for domid in $(xl list | awk '$1 ~ /^h-/ { print $2 }'); do
        check "xl destroy $domid" xl destroy "$domid"
    done
    check "no hostile guest is left" wait_for 60 none_left
}
none_left() { ! xl list | grep -q '^h-'; }

write_and_read() {
    for i in $(seq 10); do
        xenstore-write /h/x $i && [ "$(xenstore-read /h/x)" = $i ] || return 1
    done
}

show_heap() { xenstore-control memreport | sed 's/^/        /'; }

# file_name ROLE: the role as part of a domain's name.
file_name() { echo "$1" | tr = -; }

make_guest honest
check "an honest Linux guest" start_guest honest
check "it writes" guest_run honest 'xenstore-write data/x 0'
nodes=$(node_count)
ours "ports and heap come back" && {
    ports=$(server_ports)
    heap=$(server_heap)
    show_heap
}

step "the hostile guests"
names=''
for role in $roles; do
    for copy in a b; do
        # The two that are over with their first message are there once.
        [ "$role$copy" != bad-indexb ] && [ "$role$copy" != oversizeb ] || continue
        names="$names h-$(file_name "$role")-$copy"
        hostile_guest "h-$(file_name "$role")-$copy" "$role"
    done
done
equal "so many hostile guests" 20 "$(echo "$names" | wc -w)"
for name in $names; do xl unpause "$name" || fail "xl unpause $name"; done

step "the honest ones meanwhile"
start=$(seconds)
check "the honest guest writes and reads 5 times" guest_run honest \
    'for i in $(seq 5); do xenstore-write data/x $i && [ "$(xenstore-read data/x)" = $i ] || exit 1; done'
check "dom0 writes and reads 10 times" write_and_read
sound
echo "this took $(($(seconds) - start)) s"
still=0
for role in $busy; do
    for copy in a b; do has_verdict "h-$role-$copy" || still=$((still + 1)); done
done
equal "those that spin were at it all the time" 8 $still
for role in $busy; do
    for copy in a b; do check "h-$role-$copy is told to end" tell "h-$role-$copy"; done
done

step "verdicts"
for role in $judges; do
    for copy in a b; do
        name="h-$(file_name "$role")-$copy"
        [ -e "/run/guests/$name.cfg" ] || continue
        check "$name: a verdict" wait_for 150 has_verdict "$name"
        equal "$name: the verdict" "verdict: pass" "$(guest_log "$name" | grep -o '^verdict: [a-z]*' | head -n 1)"
        guest_log "$name" | sed 's/^/        /'
    done
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
    show_heap
    # What may stay are small change, and three pages of each table that nobody but the crowd has used: a chunk, the list of
    # chunks, a block of the index, however many records there were. Seen: three such tables.
    kept=$((5 * 3 * 4096))
    check "heap in use: $heap before, $after now" [ "$after" -le $((heap + 4096 + kept)) ]
}
sound
check "the honest guest still answers" guest_run honest 'xenstore-read name'
finish
