# A guest that breaks the rules of the ring loses its own connection, and nobody else notices. The guest is
# our own test guest, which speaks the ring itself; its last line says how it went.
# nested-xen: --memory 8 --timeout 400
. /lib/nested.sh

[ -e /guest/test-guest ] || {
    fail "the test guest is not built (cargo stubdom)"
    finish
}

# run_role ROLE: the test guest's verdict on itself.
run_role() {
    make_test_guest "role-$1" "role=$1"
    check "$1: xl create" xl create -q "/run/guests/role-$1.cfg"
    wait_for 60 eval "guest_log 'role-$1' | grep -q '^verdict: '"
    guest_log "role-$1" | sed 's/^/        /'
    equal "$1: the test guest's verdict" "verdict: pass" "$(guest_log "role-$1" | grep -o '^verdict: [a-z]*')"
}

make_guest bystander
check "a Linux guest beside it" start_guest bystander

for role in bad-index; do
    step "role $role"
    run_role "$role"
    check "$role: its domain is still known" is_introduced "$(guest_domid "role-$role")"
    equal "$role: dom0 goes on" "role-$role" "$(xenstore-read "/local/domain/$(guest_domid "role-$role")/name")"
    equal "$role: the other guest goes on" bystander "$(guest_run bystander 'xenstore-read name')"
    check "$role: the other guest writes" guest_run bystander "xenstore-write data/$role 1"
    xl destroy "role-$role" 2>/dev/null
    check "$role: it is gone" wait_gone "role-$role"
done
check "the other guest shuts down" xl shutdown bystander
check "and is gone" wait_gone bystander
finish
