# The life of a Linux guest: it uses the store from inside within its rights, and shutdown, destroy,
# reboot, save and restore work and leave nothing behind.
# nested-xen: --memory 8 --dom0-memory 640 --timeout 700
. /lib/nested.sh

make_guest linux
check "xl create" start_guest linux
domid=$(guest_domid linux)

step "from inside"
equal "reads its name by a relative path" linux "$(guest_run linux 'xenstore-read name')"
equal "and its domid" "$domid" "$(guest_run linux 'xenstore-read domid')"
check "writes below its data" guest_run linux 'xenstore-write data/greeting hello'
equal "dom0 sees that" hello "$(xenstore-read "/local/domain/$domid/data/greeting")"
equal "lists it" greeting "$(guest_run linux 'xenstore-list data' | grep greeting)"
check "removes it" guest_run linux 'xenstore-rm data/greeting'
refuse "dom0 sees that, too" xenstore-exists "/local/domain/$domid/data/greeting"
refuse "may not change its name" guest_run linux 'xenstore-write name other'
equal "its name is unchanged" linux "$(xenstore-read "/local/domain/$domid/name")"
refuse "may not write to dom0's nodes" guest_run linux 'xenstore-write /local/domain/0/data/x 1'
refuse "may not read another's secret" guest_run linux 'xenstore-read /libxl/0/type'
refuse "may not use CONTROL or create at the root" guest_run linux 'xenstore-write /x 1'
check "dom0 and guest are still connected" is_introduced "$domid"

step "a watch"
guest_run linux 'xenstore-watch -n 2 data/poke' >/run/events &
watcher=$!
wait_for 20 eval 'guest_log linux | tail -n 1 | grep -q data/poke'
check "dom0 writes to the watched node" xenstore-write "/local/domain/$domid/data/poke" now
wait $watcher
equal "the guest's watch fires, first at once and then for dom0's write" "data/poke data/poke" "$(xargs </run/events)"

step "xl reboot"
ready=$(times_ready linux)
check "xl reboot" xl reboot linux
check "it comes up again" wait_until_ready linux $((ready + 1))
rebooted=$(guest_domid linux)
check "as another domain" [ "$rebooted" != "$domid" ]
nothing_left "$domid"
domid=$rebooted
equal "the new one reads its domid" "$domid" "$(guest_run linux 'xenstore-read domid')"

step "xl save and restore"
check "a node of its own before" guest_run linux 'xenstore-write data/before 1'
check "xl save" timeout 120 xl save linux /run/saved
check "the domain is gone" wait_gone linux
nothing_left "$domid"
check "xl restore" timeout 120 xl restore /run/saved
rm /run/saved
domid=$(guest_domid linux)
equal "it goes on and reads its new domid" "$domid" "$(guest_run linux 'xenstore-read domid')"
check "writes below its data" guest_run linux 'xenstore-write data/after 1'
check "dom0 sees that" xenstore-exists "/local/domain/$domid/data/after"

step "xl shutdown"
check "xl shutdown" xl shutdown linux
check "the domain is gone" wait_gone linux
nothing_left "$domid"

step "xl destroy"
check "xl create" start_guest linux
domid=$(guest_domid linux)
check "xl destroy" xl destroy linux
check "the domain is gone" wait_gone linux
nothing_left "$domid"

finish
