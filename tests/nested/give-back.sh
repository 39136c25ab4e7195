# With --maxmem the store grows, and memory that it no longer needs goes back to Xen. The domain can grow again, and a
# live update knows which memory is gone.
# nested-xen: --memory 8 --maxmem 64 --older --timeout 900
. /lib/nested.sh

ours "memory goes back" || finish

value=$(head -c 3900 /dev/zero | tr '\0' x)

# fill COUNT: so many values of a page each; says what was refused.
fill() {
    n=0
    while [ $n -lt "$1" ]; do
        set -- "$1"
        pairs=''
        for i in $(seq $n $((n + 19))); do pairs="$pairs /fill/$i $value"; done
        # shellcheck disable=SC2086 # many words
        timeout 60 xenstore-write $pairs || { echo "refused at $n" && return; }
        n=$((n + 20))
    done
}

is_small() { [ "$(server_memory)" -le 12 ]; }
image() { xenstore-control stats | sed -n 's/^image: //p'; }

make_guest linux
check "a guest beside it" start_guest linux

# burst NAME: grows beyond 24 MiB, shrinks, and waits until the memory is back.
burst() {
    step "$1"
    equal "16 MiB are accepted" "" "$(fill 4200)"
    full=$(server_memory)
    echo "with 16 MiB of values: $full MiB"
    check "the domain has grown to hold them" [ "$full" -gt 20 ]
    check "removing them" xenstore-rm /fill
    wait_for 120 is_small
    echo "afterwards: $(server_memory) MiB"
    check "what it does not need has gone back to Xen" is_small
    check "but not what it was built with" [ "$(server_memory)" -ge 8 ]
    sound
    equal "the guest reads" linux "$(guest_run linux 'xenstore-read name')"
}

burst "the first burst"
burst "again, into what has gone back"

step "a live update, with memory that is gone below memory that is there"
newer=$(image)
check "to the same image" xenstore-control live-update /nested/image
burst "a burst in the new image"
check "to an older image, which does not know of such memory" xenstore-control live-update /nested/older
equal "that is what runs" "${newer%]}, hand-over 1]" "$(image)"
sound
check "and back" xenstore-control live-update /nested/image
equal "that is what runs" "$newer" "$(image)"
equal "it grows as before" "" "$(fill 400)"
check "removing them" xenstore-rm /fill
sound
equal "the guest reads" linux "$(guest_run linux 'xenstore-read name')"
finish
