# With 8 MiB and no more to be had, dom0 fills the store until it is refused: the refusal is an error
# reply, everything else goes on, and what is removed can be used again.
# nested-xen: --memory 8 --timeout 600
. /lib/nested.sh

ours "the store is full some time" || finish

make_guest linux
check "a guest beside it" start_guest linux

step "filling"
value=$(head -c 3900 /dev/zero | tr '\0' x)
# First many at a time, which is a transaction, then one by one to the end.
n=0
batch_refused=
while [ -z "$batch_refused" ] && [ $n -lt 4000 ]; do
    set --
    for i in $(seq $n $((n + 15))); do set -- "$@" "/fill/$i" "$value"; done
    if timeout 60 xenstore-write "$@" 2>/run/error; then n=$((n + 16)); else batch_refused=yes; fi
done
status=0
while [ $status = 0 ] && [ $n -lt 4000 ]; do
    timeout 30 xenstore-write "/fill/$n" "$value" 2>/run/error || status=$?
    [ $status != 0 ] || n=$((n + 1))
done
echo "$n values of 3900 bytes fit; then: $(cat /run/error)"
equal "the refusal is a reply, not a hang" 1 $status
check "a few hundred fitted" [ $n -ge 300 ]
check "8 MiB did not hold more than 8 MiB" [ $n -lt 2150 ]
# What a client before held for a moment may be free again, so the next ones may fit.
reply=OK more=0
while [ "$reply" = OK ] && [ $more -lt 100 ]; do
    reply=$(raw_request 11 "/fill/more$more\\0$value")
    more=$((more + 1))
done
equal "the reply names the error" ENOMEM "$reply"

step "full"
equal "dom0 reads" "$value" "$(xenstore-read /fill/0)"
refuse "the refused node does not exist" xenstore-exists "/fill/$n"
check "xl list" xl list
equal "the guest reads" linux "$(guest_run linux 'xenstore-read name')"
sound
live_update() { xenstore-control live-update /nested/image >/run/update.log 2>&1; }
refuse "a live update finds no room" live_update
check "and says so" grep -q "not enough memory" /run/update.log
sed 's/^/        /' /run/update.log
equal "nobody got more memory" 8 "$(server_memory)"

step "room again"
check "removing the tree" xenstore-rm /fill
check "dom0 writes" xenstore-write /fill/again "$value"
check "the guest writes" guest_run linux 'xenstore-write data/x 1'
check "xl destroy" xl destroy linux
check "xl create" start_guest linux
equal "the new guest reads" linux "$(guest_run linux 'xenstore-read name')"
finish
