# Joins the results of scripts/peers with the reasons for what differs into the tables of docs/conformance.md.
# Variables: titles (of all conversations, one a line), page, list, ours, c, ox (files). Fails if a difference
# has no reason, or a reason no difference.

BEGIN {
    count = split(titles, title, "\n")
    for (i = 1; i <= count; i++) exists[title[i]] = 1
    split("ours C OX", server, " ")
    load(ours, "ours"); load(c, "C"); load(ox, "OX")
    load_reasons(list)
    summary()
    advisories(page)
    differences()
    exit failed
}

function complain(what) {
    print "error: differences.list: " what >"/dev/stderr"
    failed = 1
}

function load(file, who,    line, part) {
    while ((getline line <file) > 0) {
        split(line, part, "\t")
        state[part[2], who] = part[1]
        said[part[2], who] = part[3]
    }
    close(file)
}

# Lines are: file: title | C or OX | where it differs | verdict | reason
function load_reasons(file,    line, part, key, fields) {
    while ((getline line <file) > 0) {
        if (line ~ /^#/ || line == "") continue
        fields = split(line, part, " [|] ")
        key = part[1] SUBSEP part[2]
        # What not every run shows is no error where it is missing, and stays on the page.
        rare[key] = sub(/^sometimes: /, "", part[3])
        if (fields != 5 || part[4] !~ /^(ours|theirs|undefined)$/ || part[2] !~ /^(C|OX)$/) complain("not five fields: " line)
        else if (!(part[1] in exists)) complain("there is no conversation '" part[1] "'")
        else if (key in verdict) complain("twice: " line)
        else if (!differs(part[1], part[2]) && !rare[key])
            complain("no difference any more: " part[1] " | " part[2])
        else if (differs(part[1], part[2]) && !index(said[key], part[3]))
            complain("it differs elsewhere: " part[1] " | " part[2] ": " said[key])
        where[key] = part[3]; verdict[key] = part[4]; reason[key] = part[5]
    }
    close(file)
}

function differs(t, who) { return state[t, who] ~ /^(FAIL|LOST)$/ }

function summary(    i, s, n, name) {
    for (i = 1; i <= count; i++) for (s = 1; s <= 3; s++) n[server[s], state[title[i], server[s]]]++
    name["ours"] = "this one"; name["C"] = "C xenstored"; name["OX"] = "oxenstored"
    print "| server | as expected | otherwise | server lost | not playable there |"
    print "|---|---|---|---|---|"
    for (s = 1; s <= 3; s++)
        printf "| %s | %d | %d | %d | %d |\n", name[server[s]], n[server[s], "ok"], n[server[s], "FAIL"],
            n[server[s], "LOST"], n[server[s], "skip"] + n[server[s], ""]
    print ""
}

# One row for each advisory that the page has a row for: all conversations with its number in their title.
function advisories(page,    line, part, s, row) {
    print "| advisory | this one | C | OX |"
    print "|---|---|---|---|"
    while ((getline line <page) > 0) {
        # The page has the table that this writes, too.
        if (line ~ /scripts\/peers: begin/) break
        if (line !~ /^\| XSA-[0-9]+ /) continue
        split(line, part, " [|] ")
        row = part[1]
        split(row, part, " ")
        for (s = 1; s <= 3; s++) row = row " | " fares(part[2], server[s])
        print row " |"
    }
    close(page)
    print ""
}

function fares(advisory, who,    i, t, n, all, played, text, good, seen) {
    for (i = 1; i <= count; i++) {
        t = title[i]
        if ((t " ") !~ advisory "[^0-9]") continue
        all++
        n[state[t, who]]++
        if (said[t, who] ~ /not compared/) n["in part"]++
        if (!differs(t, who) || seen[reason[t, who]]++) continue
        text = text (text == "" ? "" : " / ") (state[t, who] == "LOST" ? "**server lost**: " : "") reason[t, who]
    }
    played = n["ok"] + n["FAIL"] + n["LOST"]
    if (!played) return "not played"
    good = text == "" ? "as expected (" n["ok"] : n["ok"] + 0 " of " played " as expected"
    if (n["in part"]) good = good ", " n["in part"] " in part"
    if (text == "") good = good ")"
    if (played < all) good = good ", " all - played " not played"
    return text == "" ? good : good "; otherwise: " text
}

function differences(    i, s, t, who, note) {
    print "| conversation | server | differs at | verdict | reason |"
    print "|---|---|---|---|---|"
    for (i = 1; i <= count; i++) for (s = 2; s <= 3; s++) {
        t = title[i]; who = server[s]
        if (!differs(t, who) && !rare[t, who]) continue
        if (!((t, who) in verdict)) complain("no reason: " t " | " who " | " said[t, who])
        note = rare[t, who] ? "not always, " (differs(t, who) ? "seen" : "not seen") " now: " : ""
        if (state[t, who] == "LOST") note = note "**server lost**: "
        printf "| %s | %s | %s | %s | %s |\n", t, who, note "`" where[t, who] "`", verdict[t, who], reason[t, who]
    }
}
