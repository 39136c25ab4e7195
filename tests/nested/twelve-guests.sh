# Twelve guests at a time come, use the store and go; nothing of them stays in the server.
# nested-xen: --memory 8 --timeout 1200
. /lib/nested.sh

guests=$(seq 1 12)

# account_of DOMID: what it uses now, without the most it ever did.
account_of() { xenstore-control quota "$1" | sed 's/(max.*//' | tr -s ' '; }

# One guest before: what the first guest of a boot leaves on purpose should not count.
make_guest first
check "a first guest" start_guest first
check "is destroyed" xl destroy first
wait_gone first

nodes=$(node_count)
ours "ports, heap and dom0's account are back where they were" && {
    ports=$(server_ports)
    heap=$(server_heap)
    account=$(account_of 0)
}

step "twelve guests"
for n in $guests; do
    make_guest "guest$n"
    # One boots after the other: twelve at once on one emulated processor would only time out.
    check "guest$n is created and comes up" start_guest "guest$n"
    equal "guest$n reads its name" "guest$n" "$(guest_run "guest$n" 'xenstore-read name')"
    check "guest$n writes" guest_run "guest$n" 'for i in 1 2 3 4 5; do xenstore-write data/$i $i; done'
done
equal "dom0 sees all of their nodes" 60 "$(xenstore-ls -f /local/domain | grep -cE '/data/[1-5] ')"
for n in $guests; do
    check "guest$n: xl destroy" xl destroy "guest$n"
done
for n in $guests; do wait_gone "guest$n"; done

step "afterwards"
equal "as many nodes as before" "$nodes" "$(node_count)"
[ "$server" = ours ] && {
    equal "as many ports" "$ports" "$(server_ports)"
    equal "dom0's account" "$account" "$(account_of 0)"
    # A byte that belongs to nothing is found by this, exactly.
    sound
    # Each table keeps one page that is empty, however many guests come and go. The twelve here leave four of these: 16,480
    # bytes were seen. Of what is known, nodes, ports and accounts above say that nobody's is left.
    more=$(($(server_heap) - heap))
    echo "heap in use: $heap bytes before, $more more after"
    check "heap in use is back" [ $more -le $((5 * 4096)) ]
}
finish
