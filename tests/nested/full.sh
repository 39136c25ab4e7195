# With 8 MiB and no more to be had, dom0 fills the store until it is refused: the refusal is an error
# reply, everything else goes on, and what is removed can be used again.
# nested-xen: --memory 8 --timeout 600
. /lib/nested.sh

ours "the store is full some time" || finish

make_guest linux
check "a guest beside it" start_guest linux

step "filling"
value=$(head -c 3900 /dev/zero | tr '\0' x)
echo "$value" >/run/value
# Twenty at a time (in a transaction) while that goes, then one by one; the last number noted is that of the
# first node that was refused.
timeout 400 sh -c 'n=0; value=$(cat /run/value)
    while [ $n -lt 4000 ]; do
        set --
        for i in $(seq $n $((n + 19))); do set -- "$@" /fill/$i "$value"; done
        xenstore-write "$@" 2>/dev/null || break
        n=$((n + 20))
    done
    while [ $n -lt 4000 ] && echo $n >/run/n && xenstore-write /fill/$n "$value"; do n=$((n + 1)); done
    exit 77' 2>/run/error
equal "the refusal is a reply, not a hang" 77 $?
n=$(cat /run/n)
echo "$n values of 3900 bytes fit; then: $(cut -c 1-160 /run/error)"
check "a few hundred fitted" [ "$n" -ge 300 ]
check "8 MiB did not hold more than 8 MiB" [ "$n" -lt 2150 ]
equal "the reply names the error" ENOMEM "$(raw_request 11 "/fill/more\\0$value")"

step "full"
equal "dom0 reads" "$value" "$(xenstore-read /fill/0)"
refuse "the refused node does not exist" xenstore-exists "/fill/$n"
check "xl list" xl list
equal "the guest reads" linux "$(guest_run linux 'xenstore-read name')"
check "xenstore-control check" xenstore-control check
equal "nobody got more memory" 8 "$(server_memory)"

step "room again"
check "removing the tree" xenstore-rm /fill
check "dom0 writes" xenstore-write /fill/again "$value"
check "the guest writes" guest_run linux 'xenstore-write data/x 1'
check "xl destroy" xl destroy linux
check "xl create" start_guest linux
equal "the new guest reads" linux "$(guest_run linux 'xenstore-read name')"
finish
