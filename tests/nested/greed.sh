# Guests that keep all their quotas and choose what costs the server most: one commit with many long watches, a
# crowd of watches on one commit, long names, deep chains, all quotas at once, watches on every death. dom0 and
# an honest guest go on, and domains come and go beside them.
# nested-xen: --memory 8 --maxmem 64 --timeout 1500
. /lib/nested.sh

[ -e /guest/test-guest ] || {
    fail "the test guest is not built (cargo stubdom)"
    finish
}

# One emulated processor for all of them: a program that starts in the honest guest takes seconds.
guest_patience=300

has_verdict() { guest_log "$1" | grep -q '^verdict: '; }

# greedy NAME WHAT: a guest that does WHAT.
greedy() {
    make_test_guest "$1" "role=greed=$2"
    check "$1: xl create" xl create -q "/run/guests/$1.cfg"
}

# judged NAME: it came to its verdict, every request answered.
judged() {
    check "$1: a verdict" wait_for 300 has_verdict "$1"
    equal "$1: every request is answered" "verdict: pass" "$(guest_log "$1" | grep -o '^verdict: [a-z]*' | head -n 1)"
    guest_log "$1" | sed 's/^/        /'
}

write_and_read() {
    for i in $(seq 5); do
        xenstore-write /tool/greed $i && [ "$(xenstore-read /tool/greed)" = $i ] || return 1
    done
    xenstore-rm /tool/greed
}

# goes_on WHAT: dom0 looks, changes, starts a domain and ends it; the honest guest writes.
goes_on() {
    check "$1: dom0 writes and reads" write_and_read
    check "$1: xenstore-ls" xenstore-ls /tool
    check "$1: the honest guest writes" guest_run honest 'xenstore-write data/x 1'
    ours "$1: check, memreport" && {
        sound "$1: xenstore-control check"
        xenstore-control memreport | grep '^heap' | sed 's/^/        /'
    }
    make_test_guest beside 'role=hello'
    check "$1: a domain is created" xl create -q /run/guests/beside.cfg
    check "$1: it comes to a verdict" wait_for 120 has_verdict beside
    equal "$1: it is served" "verdict: pass" "$(guest_log beside | grep -o '^verdict: [a-z]*' | tail -n 1)"
    check "$1: it is destroyed" xl destroy beside
    : >"$logs/guest-beside.log"
}

make_guest honest
check "an honest Linux guest" start_guest honest
check "it writes" guest_run honest 'xenstore-write data/x 0'
nodes=$(node_count)

step "one commit of one guest"
greedy commit commit
judged commit
goes_on "one commit"
check "commit: xl destroy" xl destroy commit

step "a crowd watches one commit"
xenstore-write /greed ''
xenstore-chmod /greed b0
for n in 1 2 3 4; do greedy watch$n watch; done
for n in 1 2 3 4; do judged watch$n; done
greedy crowd crowd
judged crowd
goes_on "a crowd"
for n in crowd watch1 watch2 watch3 watch4; do check "$n: xl destroy" xl destroy $n; done
xenstore-rm /greed

step "long names"
for n in 1 2; do greedy names$n names; done
for n in 1 2; do judged names$n; done
for n in 1 2; do check "names$n: xl destroy" xl destroy names$n; done
goes_on "the death of long names"

step "deep chains"
for n in 1 2; do greedy chain$n chain; done
goes_on "beside deep chains"
for n in 1 2; do judged chain$n; done
for n in 1 2; do check "chain$n: xl destroy" xl destroy chain$n; done

step "all quotas"
fillers=$([ "$maxmem" ] && echo '1 2 3 4 5 6 7 8' || echo '1 2 3 4')
for n in $fillers; do greedy fill$n fill; done
for n in $fillers; do judged fill$n; done
goes_on "beside full guests"

step "watches on every death"
for n in 1 2 3 4; do greedy release$n release; done
for n in 1 2 3 4; do judged release$n; done
for n in $fillers; do xl destroy fill$n & done
wait
check "nobody of them is left" wait_for 60 eval "! xl list | grep -q '^fill'"
goes_on "after many deaths"
for n in 1 2 3 4; do check "release$n: xl destroy" xl destroy release$n; done

step "afterwards"
equal "as many nodes as before" "$nodes" "$(node_count)"
goes_on "at the end"
finish
