# An image that knows a newer version of the hand-over and one that does not replace each other, in both directions.
# nested-xen: --memory 8 --older
. /lib/nested.sh

[ "$server" = ours ] || {
    skip "live update of a stub domain (not with $server)"
    finish
}

image() { xenstore-control stats | sed -n 's/^image: //p'; }

# What the guest at work does not change.
tree() { xenstore-ls -fp / | grep -v '^/local/domain/[1-9][0-9]*/data'; }

# update FILE WORD IMAGE
update() {
    xenstore-write /versions/value "before $2"
    xenstore-chmod /versions/value r0 b5
    tree >/run/tree.before
    check "$2" xenstore-control live-update "$1"
    equal "$2: the image" "$3" "$(image)"
    tree >/run/tree.after
    check "$2: the same tree" cmp /run/tree.before /run/tree.after
    sound "$2: check"
}

make_guest steady 16 "kernel='/guest/test-guest'" "ramdisk=''" "cmdline='role=steady'" "on_poweroff='preserve'"
check "a test guest at work, with transactions and watches" xl create -q /run/guests/steady.cfg

step "down, and up again"
newer=$(image)
older="${newer%]}, hand-over 1]"
for round in 1 2 3; do
    update /nested/older "$round: a downgrade" "$older"
    update /nested/older "$round: from older to older" "$older"
    update /nested/image "$round: an upgrade" "$newer"
    update /nested/image "$round: from newer to newer" "$newer"
done

step "the guest"
check "it is told to stop" xenstore-write "/local/domain/$(guest_domid steady)/data/stop" 1
wait_for 60 eval "guest_log steady | grep -q '^verdict: '"
guest_log steady | grep '^verdict: ' | sed 's/^/        /'
equal "it noticed nothing" "verdict: pass" "$(guest_log steady | grep -o '^verdict: [a-z]*')"
finish
