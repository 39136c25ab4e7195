# Plays the transcripts in dom0 from the conversation after the one named in /nested/after, if any.
. /lib/nested.sh
chmod +x /nested/player
after=$(cat /nested/after 2>/dev/null)
if [ -n "$after" ]; then
    timeout 800 /nested/player "$server" --after "$after" /nested/transcripts/*.txt
else
    timeout 800 /nested/player "$server" /nested/transcripts/*.txt
fi
status=$?
[ "$server" = ours ] || pidof "$server" >/dev/null || {
    echo "the process of $server is gone"
    dmesg | grep -E 'segfault|trap|general protection' | tail -n 3
}
exit $status
