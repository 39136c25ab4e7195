# As greed.sh, in 8 MiB and no more.
# nested-xen: --memory 8 --add "$repository/tests/nested/greed.sh:/nested/greed.sh" --timeout 1500
. /nested/greed.sh
