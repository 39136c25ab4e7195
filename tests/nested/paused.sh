# Somebody pauses the store's domain, or begins to destroy it with xl, which pauses it first: it is left alone, and goes on
# when that is asked for, without the store.
# nested-xen: --memory 8
. /lib/nested.sh

[ "$server" = ours ] || {
    skip "a stub domain that is paused (not with $server)"
    finish
}

[ -x /usr/bin/xenstore-guard ] || { fail "there is no /usr/bin/xenstore-guard: cargo guard builds it" && finish; }

hangs() { [ "$(timeout 15 "$@" >/dev/null 2>&1; echo $?)" = 143 ]; }

xenstore-write /test/value here
start_guard
check "the guard watches" wait_for 20 guard_says 'watching domain'
refuse "it is not paused" xenstore-guard unpause

step "xl pause"
check "xl pause" xl pause Xenstore
check "nobody is served" hangs xenstore-read /test/value
check "xl unpause needs the store" hangs xl unpause Xenstore
check "xenstore-stubdom unpause" xenstore-guard unpause
check "the store answers" wait_for 20 answers

step "xl destroy"
check "it waits for ever" hangs xl destroy Xenstore
check "nobody is served" hangs xenstore-read /test/value
check "the domain is only paused" xenstore-guard unpause
check "the store answers" wait_for 20 answers
sound

equal "the guard has done nothing" 1 "$(wc -l </run/guard.log)"
sed 's/^/        /' /run/guard.log
finish
