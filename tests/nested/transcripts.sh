# The conversations of tests/transcripts on real Xen: dom0 and test guests on their raw rings play all that do
# not take a simulated world, and one guest plays alone what it can, from the module it is started with.
# nested-xen: --memory 8 --timeout 600
. /lib/nested.sh

[ -e /guest/test-guest ] && [ -e /nested/player ] || {
    fail "something is not built (cargo stubdom; cargo build --release --example player)"
    finish
}

# count_results FILE: the lines of a player as checks of this script.
count_results() {
    passed=$((passed + $(grep -c '^ok' "$1")))
    skipped=$((skipped + $(grep -c '^skip' "$1")))
    grep '^skip' "$1" | tr '\t' ' '
    failed=$((failed + $(grep -cE '^(FAIL|LOST)' "$1")))
}

step "dom0 and guests"
chmod +x /nested/player
timeout 560 /nested/player "$server" --quick /nested/transcripts/*.txt | tee /run/played |
    awk '!/^skip/ { gsub("\t", " "); print; fflush() }'
count_results /run/played
# The one thing that must not be missed is a run that broke off.
check "the player came to its end" grep -q '^verdict: pass' /run/played
grep '^verdict' /run/played

step "a guest alone"
cat /nested/transcripts/*.txt >/run/all.txt
make_guest alone 16 "kernel='/guest/test-guest'" "ramdisk='/run/all.txt'" "cmdline='role=transcript'"
check "xl create, paused" xl create -q -p /run/guests/alone.cfg
domid=$(guest_domid alone)
# The conversations expect that nobody has made a home for the domain.
check "its home is removed" xenstore-rm "/local/domain/$domid"
check "xl unpause" xl unpause "$domid"
check "it comes to a verdict" wait_for 120 eval "guest_log alone | grep -q '^verdict: '"
guest_log alone | grep -E '^(ok|FAIL): '
equal "the guest's verdict" "verdict: pass" "$(guest_log alone | grep -o '^verdict: [a-z]*')"
guest_log alone | grep '^verdict'
xl destroy "$domid" 2>/dev/null

sound
finish
