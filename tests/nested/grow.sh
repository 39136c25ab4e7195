# With --maxmem the store grows past what the domain started with, page by page from Xen.
# nested-xen: --memory 8 --maxmem 64 --timeout 600
. /lib/nested.sh

ours "the store grows" || finish

equal "it starts with 8 MiB" 8 "$(server_memory)"
value=$(head -c 3900 /dev/zero | tr '\0' x)
step "16 MiB of values"
n=0
failed_at=
while [ $n -lt 4300 ]; do
    set --
    for i in $(seq $n $((n + 19))); do set -- "$@" "/fill/$i" "$value"; done
    timeout 60 xenstore-write "$@" || { failed_at=$n && break; }
    n=$((n + 20))
done
equal "every one is accepted" "" "$failed_at"
check "the domain has grown to hold them" [ "$(server_memory)" -gt 16 ]
check "but not past its maximum" [ "$(server_memory)" -le 64 ]
equal "the first is there" "$value" "$(xenstore-read /fill/0)"
equal "the last is there" "$value" "$(xenstore-read /fill/4299)"
sound
check "removing the tree" xenstore-rm /fill
make_guest linux
check "a guest starts" start_guest linux
equal "and reads" linux "$(guest_run linux 'xenstore-read name')"
finish
