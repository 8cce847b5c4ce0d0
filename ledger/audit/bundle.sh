#!/bin/sh
# Check a bundle of a ledger without the ledger: sh verify.sh KEY... [ROOTS]
#
# KEY    a file with a verifier key, NAME+HASH+BASE64; it must not come with the bundle.  Where the key of the ledger was
#        replaced, the former ones too: each signature must be of one of them
# ROOTS  a file with the certificates (PEM) that timestamps must lead to
#
# Needs sh, awk, coreutils, openssl and jq.  Ends with 0 and OK, or names the first thing that is wrong.
set -eu
export LC_ALL=C
fail() { echo "FAILED: $*" >&2; exit 1; }
step() { echo "$*"; }

work=$(mktemp -d)
# Many small files, a few thousand at a time: in memory, where there is room for them, since disks are slow at that.
small=$(mktemp -d -p /dev/shm 2> /dev/null || mktemp -d)
trap 'rm -rf "$work" "$small"' EXIT

touch "$work/keys" "$work/roots.pem"
for file; do
    [ -r "$file" ] || fail "$file cannot be read"
    kind=keys
    if grep -q '^-----BEGIN ' < "$file"; then kind=roots.pem; fi
    # With a newline behind the last line, whether or not the file has one.
    awk 1 < "$file" >> "$work/$kind"
done
[ -s "$work/keys" ] || fail "a verifier key is needed: sh verify.sh KEY... [ROOTS]"
cd "$(dirname "$0")"

# SHA-256 of each line of the file $1, without its newline and behind the text $2: one a line.  Where $2 is LEAF it is
# a byte of zero instead, which makes it the leaf hash of RFC 6962.
hash_lines() {
    rm -rf "$small/hash" && mkdir "$small/hash"
    split -a 4 -l 4096 "$1" "$small/hash/part."
    for part in "$small"/hash/part.*; do
        awk -v folder="$small/hash" -v before="$2" '{
            file = sprintf("%s/line.%05d", folder, NR)
            ORS = ""
            if (before == "LEAF") printf "%c", 0 > file
            else print before > file
            print $0 > file
            close(file)
        }' "$part"
        (cd "$small/hash" && sha256sum line.*) > "$small/hash/sums"
        cut -c1-64 "$small/hash/sums"
        rm "$small"/hash/line.*
    done
}

# The root over the hashes in the file $1: two at a time behind a byte of one, level by level; one that is left over
# goes up as it is.
merkle_root() {
    cp "$1" "$work/level"
    while [ "$(wc -l < "$work/level")" -gt 1 ]; do
        paste -d '\0' - - < "$work/level" > "$work/pairs"
        rm -rf "$small/hash" && mkdir "$small/hash"
        awk 'length($0) == 64' "$work/pairs" > "$work/left"
        awk 'length($0) == 128 { print "01" toupper($0) }' "$work/pairs" | split -a 4 -l 4096 - "$small/hash/part."
        for part in "$small"/hash/part.*; do
            tr -d '\n' < "$part" | basenc --base16 -d | split -a 4 -d -b 65 - "$small/hash/node."
            (cd "$small/hash" && sha256sum node.*) > "$small/hash/sums"
            cut -c1-64 "$small/hash/sums"
            rm "$small"/hash/node.*
        done > "$work/level"
        cat "$work/left" >> "$work/level"
    done
    cat "$work/level"
}

# Whether the checkpoint in the file $1, which is $2, is signed with a key that is named as its log is; its size and root,
# in hex.
checkpoint() {
    awk '/^$/ { exit } { print }' "$1" > "$work/text"
    signed=
    while IFS= read -r key; do
        name=${key%%+*}
        [ "$(head -n 1 "$work/text")" = "$name" ] || continue
        { printf '\060\052\060\005\006\003\053\145\160\003\041\000'
          echo "${key#*+*+}" | base64 -d | tail -c 32; } > "$work/key.der"
        for signature in $(awk -v name="$name" '$1 == "\342\200\224" && $2 == name { print $3 }' "$1"); do
            echo "$signature" | base64 -d | tail -c +5 > "$work/signature"
            openssl pkeyutl -verify -pubin -inkey "$work/key.der" -keyform DER -rawin -in "$work/text" \
                -sigfile "$work/signature" > /dev/null 2>&1 && signed=yes
        done
    done < "$work/keys"
    [ "$signed" ] || fail "$2 is not signed with any of the keys"
    size=$(awk 'NR == 2' "$work/text")
    root=$(awk 'NR == 3' "$work/text" | base64 -d | basenc --base16 -w 0 | tr A-F a-f)
}

# Whether the file $1, made here, is the file $2, which is $3 of the bundle or comes from it.
same() { cmp -s "$1" "$2" || fail "${3:-$2} is not what the records come to: $(cmp "$1" "$2" 2>&1 | cut -d: -f2-)"; }

step "1. Every file is what the manifest says, and there is no other."
sha256sum --quiet --strict -c manifest || fail "manifest"
{ cut -c67- manifest; echo manifest; } | sort > "$work/listed"
find . ! -type d | cut -c3- | sort | cmp -s - "$work/listed" || fail "the files are not those that the manifest names"
! grep -qvxE -e 'checkpoint|ledger\.json|manifest|verify\.sh|(exports/)?README\.md' \
    -e '(records|payloads|transactions)\.jsonl|reports/(accounts|trial-balance|verification)\.json' \
    -e 'exports/(balances\.csv|journal\.(csv|hledger|beancount))|anchors/[0-9]{2}\.jsonl|timestamps/[0-9]{2}\.tsr' \
    "$work/listed" \
    || fail "the manifest names a file that no bundle has"

step "2. The checkpoint is signed."
checkpoint checkpoint "the checkpoint"
events=$size

step "3. The records are those of the checkpoint: their number, and the root of their Merkle tree."
count=$(wc -l < records.jsonl)
[ "$count" -eq "$size" ] || fail "records.jsonl has $count lines, and the checkpoint is of $size records"
hash_lines records.jsonl LEAF > "$work/leaves"
[ "$(merkle_root "$work/leaves")" = "$root" ] || fail "records.jsonl has another root than the checkpoint"

step "4. Payloads and transactions are those whose hashes are in the records."
[ "$(wc -l < payloads.jsonl)" -eq "$size" ] || fail "payloads.jsonl has not $size lines"
sort -u payloads.jsonl > "$work/distinct"
hash_lines "$work/distinct" "" > "$work/hashes"
paste "$work/hashes" "$work/distinct" > "$work/known"
awk 'NR == FNR { hash[substr($0, 66)] = substr($0, 1, 64); next } { print hash[$0] }' "$work/known" payloads.jsonl \
    > "$work/payloads"
hash_lines transactions.jsonl "" > "$work/hashes"
jq -r '[.transaction_id, .kind, .recorded_at, .effective_at, (.entry_count | tostring), (.events | length | tostring),
        (.events | map("\(.[0]) \(.[1])") | join(" "))] | @tsv' transactions.jsonl > "$work/headers" \
    || fail "transactions.jsonl is not JSON"
paste "$work/hashes" "$work/headers" > "$work/transactions"

step "5. Versions are 1, 2, 3 ..., each event follows the one before it, numbers add up, transactions balance."
paste -d '\n' records.jsonl payloads.jsonl > "$work/both"
# Amounts are texts: numbers of jq and awk are exact up to 2^53 only.
jq -r 'input as $payload | [.stream, (.version | tostring), .prev, .type, .transaction_id, .header_sha256,
        .payload_sha256, .asset // "", .direction // "", .amount // "", .posted_debits // "", .posted_credits // "",
        .pending_debits // "", .pending_credits // "", .recorded_at, .effective_at,
        (if .type == "account_opened" then $payload.account_type, $payload.asset, ($payload.scale | tostring), "open"
         elif .type == "account_state_changed" then "", "", "", $payload.state
         else "", "", "", "" end)] | @tsv' "$work/both" > "$work/fields" || fail "records.jsonl or payloads.jsonl is not JSON"
ledger_id=$(jq -r .ledger_id ledger.json)
cut -f1 "$work/fields" | sort -u > "$work/streams"
hash_lines "$work/streams" "ledger/genesis/1\\n$ledger_id\\n" > "$work/hashes"
paste "$work/streams" "$work/hashes" > "$work/genesis"
paste "$work/fields" "$work/leaves" "$work/payloads" > "$work/events"

awk -F '\t' -v work="$work" '
    # Sums of any size: limbs of eight decimal digits, lowest first, signed until they are read.
    function add(sums, key, sign, digits,    limb, from) {
        for (limb = 0; digits != ""; limb++) {
            from = length(digits) > 8 ? length(digits) - 7 : 1
            sums[key, limb] += sign * substr(digits, from)
            digits = substr(digits, 1, from - 1)
        }
    }
    function read(sums, key,    limb, carry, value, text) {
        for (limb = carry = 0; limb < 7; limb++) {
            value = sums[key, limb] + carry
            carry = int(value / 100000000)
            value -= carry * 100000000
            if (value < 0) { value += 100000000; carry-- }
            text = sprintf("%08d", value) text
        }
        if (carry < 0) {
            for (limb = 0; limb < 7; limb++) minus["", limb] = -sums[key, limb]
            return "-" read(minus, "")
        }
        sub(/^0+/, "", text)
        return text == "" ? "0" : text
    }
    function units(minor, scale,    sign) {
        sign = sub(/^-/, "", minor) ? "-" : ""
        if (scale == 0) return sign minor
        while (length(minor) <= scale) minor = "0" minor
        return sign substr(minor, 1, length(minor) - scale) "." substr(minor, length(minor) - scale + 1)
    }
    function wrong(text) {
        print "FAILED: line " line " of records.jsonl: " text > "/dev/stderr"
        failed = 1
        exit 1
    }
    function begin_transaction(    places, i) {
        if ((getline header < (work "/transactions")) <= 0) wrong("it is of no line of transactions.jsonl")
        transactions++
        split(header, of, "\t")
        left = of[7]
        split("", announced)
        split(of[8], places, " ")
        for (i = 1; i < 2 * left; i += 2) announced[places[i] " " places[i + 1]] = 1
        split("", net); split("", assets)
        entries = 0
    }
    function end_transaction(    asset) {
        if (entries != of[6]) wrong("transaction " of[2] " has " entries " entries, and says " of[6])
        for (asset in assets)
            if (read(net, "posted" asset) != "0" || read(net, "pending" asset) != "0")
                wrong("debits and credits of transaction " of[2] " differ in " asset)
    }
    BEGIN {
        while ((getline header < (work "/genesis")) > 0) { split(header, of, "\t"); head[of[1]] = of[2] }
        split("entry_posted hold_captured", names, " ")
        for (i in names) posts[names[i]] = 1
        holds["hold_placed"] = 1
        holds["hold_captured"] = holds["hold_released"] = holds["hold_expired"] = -1
    }
    {
        line = NR
        stream = $1
        if (!left) begin_transaction()
        if ($5 "" != of[2] "" || $6 "" != of[1] "" || $15 "" != of[4] "" || $16 "" != of[5] "")
            wrong("it is not of line " transactions " of transactions.jsonl")
        if (!((stream " " $2) in announced)) wrong("its transaction does not announce " stream " version " $2)
        delete announced[stream " " $2]
        if ($7 "" != $22 "") wrong("the same line of payloads.jsonl is not its payload")
        if ($2 "" != version[stream] + 1 "") wrong(stream " has version " version[stream] + 1 " before version " $2)
        if ($3 "" != head[stream] "") wrong("prev is not the hash of the event before it in " stream)
        version[stream] = $2
        head[stream] = $21
        if ($17 != "") { type[stream] = $17; asset[stream] = $18; scale[stream] = $19 }
        if ($20 != "") state[stream] = $20
        if ($10 != "") {
            if ($8 "" != asset[stream] "") wrong(stream " is no account in " $8)
            side = $9 == "debit" ? "d" : "c"
            sign = $9 == "debit" ? 1 : -1
            entries++
            assets[$8] = 1
            if ($4 in posts) {
                add(net, "posted" $8, sign, $10)
                add(numbers, stream " posted " side, 1, $10)
            }
            if ($4 in holds) {
                add(net, "pending" $8, sign * holds[$4], $10)
                add(numbers, stream " pending " side, holds[$4], $10)
            }
            print NR "," $15 "," $16 "," $5 "," of[3] "," $4 "," stream "," $2 "," $9 "," \
                units($10, scale[stream]) "," asset[stream] > (work "/journal")
        }
        if (stream in type) {
            if ($11 "" != read(numbers, stream " posted d") "" || $12 "" != read(numbers, stream " posted c") "" ||
                $13 "" != read(numbers, stream " pending d") "" || $14 "" != read(numbers, stream " pending c") "")
                wrong("its numbers are not what the events of " stream " come to")
        }
        if (--left == 0) end_transaction()
    }
    END {
        if (failed) exit 1
        if (left) wrong("the last transaction announces " left " events more")
        if ((getline header < (work "/transactions")) > 0) wrong("it is the last, and transactions.jsonl goes on")
        for (stream in type) {
            account = stream
            sub(/#.*/, "", account)
            versions[account] += version[stream]
            streams[account]++
            split("posted d,posted c,pending d,pending c", names, ",")
            for (i = 1; i <= 4; i++) {
                add(numbers_of, account " " names[i], 1, read(numbers, stream " " names[i]))
                all = asset[stream] "\t" type[stream]
                if (i <= 2) add(totals, all " " names[i], 1, read(numbers, stream " " names[i]))
                if (i <= 2) add(grand, asset[stream], i == 1 ? 1 : -1, read(numbers, stream " " names[i]))
            }
        }
        for (account in versions) {
            accounts++
            debits = read(numbers_of, account " posted d")
            credits = read(numbers_of, account " posted c")
            pending_debits = read(numbers_of, account " pending d")
            pending_credits = read(numbers_of, account " pending c")
            all = asset[account] "\t" type[account]
            counted[all]++
            scale_of[all] = scale[account]
            print account "\t" type[account] "\t" asset[account] "\t" versions[account] "\t" scale[account] "\t" \
                state[account] "\t" streams[account] "\t" debits "\t" credits "\t" pending_debits "\t" \
                pending_credits > (work "/accounts")
            normal = type[account] == "asset" || type[account] == "expense" ? 1 : -1
            split("", balance)
            add(balance, "", normal, debits)
            add(balance, "", -normal, credits)
            s = scale[account]
            print account "," type[account] "," asset[account] "," state[account] "," units(debits, s) "," \
                units(credits, s) "," units(pending_debits, s) "," units(pending_credits, s) "," \
                units(read(balance, ""), s) > (work "/balances")
        }
        for (all in counted)
            print all "\t" counted[all] "\t" scale_of[all] "\t" read(totals, all " posted d") "\t" \
                read(totals, all " posted c") > (work "/trial")
        for (each in counted) {
            split(each, names, "\t")
            if (read(grand, names[1]) != "0") wrong("debits and credits of all accounts differ in " names[1])
        }
        for (stream in version) number++
        print accounts + 0 "\t" NR "\t" number "\t" transactions > (work "/counts")
    }' "$work/events" || exit 1

step "6. Reports and exports are what the records come to."
touch "$work/accounts" "$work/trial" "$work/balances" "$work/journal"
jq -r '.[] | [.account, .account_type, .asset, (.events, .scale | tostring), .state, (.streams | tostring),
        .posted_debits, .posted_credits, .pending_debits, .pending_credits] | @tsv' reports/accounts.json \
    > "$work/accounts.said" || fail "reports/accounts.json is not JSON"
tab=$(printf '\t')
sort -t "$tab" -k1,1 "$work/accounts" > "$work/accounts.made"
cmp -s "$work/accounts.made" "$work/accounts.said" || fail "reports/accounts.json is not what the records come to"
jq -r '.[] | [.asset, .account_type, (.accounts, .scale | tostring), .debits, .credits] | @tsv' \
    reports/trial-balance.json > "$work/trial.said" || fail "reports/trial-balance.json is not JSON"
sort -t "$tab" -k1,1 -k2,2 "$work/trial" > "$work/trial.made"
cmp -s "$work/trial.made" "$work/trial.said" || fail "reports/trial-balance.json is not what the records come to"
jq -r '[.accounts, .events, .streams, .transactions | tostring] | @tsv' reports/verification.json > "$work/counts.said"
cmp -s "$work/counts" "$work/counts.said" || fail "reports/verification.json is not what the records come to"
{ echo account,account_type,asset,state,debits,credits,pending_debits,pending_credits,balance
  sort -t, -k1,1 "$work/balances"; } > "$work/balances.made"
same "$work/balances.made" exports/balances.csv
{ echo position,recorded_at,effective_at,transaction_id,kind,event,stream,version,direction,amount,asset
  cat "$work/journal"; } > "$work/journal.made"
same "$work/journal.made" exports/journal.csv

# What the journals for other programs assert at their end is what the accounts came to.
awk -F, 'NR > 1 { net = $9; if ($2 != "asset" && $2 != "expense" && net ~ /[1-9]/ && !sub(/^-/, "", net)) net = "-" net
        print $1 "," net }' exports/balances.csv | sort > "$work/nets"
awk '/^account / { id = $4; gsub(/^account:|,$/, "", id); ids[$2] = id }
    /^[0-9-]+ \* balances$/ { end = 1 }
    end && /^    [A-Z]/ { print ids[$1] "," $(NF - 1) }' exports/journal.hledger | sort > "$work/asserted"
same "$work/asserted" "$work/nets" exports/journal.hledger
awk '/^[0-9-]+ open / { name = $3; getline; ids[name] = substr($2, 2, length($2) - 2) }
    /^; all accounts at position / { end = 1 }
    end && /^[0-9-]+ balance / { print ids[$3] "," $4 }' exports/journal.beancount | sort > "$work/asserted"
same "$work/asserted" "$work/nets" exports/journal.beancount
if command -v hledger > /dev/null; then
    hledger -f exports/journal.hledger check -s > "$work/said" 2>&1 \
        || fail "hledger refuses exports/journal.hledger: $(head -n 1 "$work/said")"
    echo "   hledger: exports/journal.hledger adds up"
else
    echo "   exports/journal.hledger: not added up, for want of hledger"
fi

step "7. Anchored checkpoints are of these records; timestamps are of the checkpoint."
for anchor in anchors/*.jsonl; do
    [ -e "$anchor" ] || continue
    [ -s "$anchor" ] || fail "$anchor has no checkpoint"
    jq -R -r --arg events "$events" 'try (fromjson | .checkpoint | split("\n")[1] | tonumber <= ($events | tonumber))
        catch "broken"' "$anchor" > "$work/covered"
    line=$(awk '/broken/ { print NR; exit }' "$work/covered")
    [ -z "$line" ] || fail "line $line of $anchor is no checkpoint"
    line=$(awk '/true/ { line = NR } END { print line }' "$work/covered")
    [ "$line" ] || { echo "   $anchor: it begins behind this bundle"; continue; }
    sed -n "${line}p" "$anchor" | jq -j .checkpoint > "$work/anchored"
    checkpoint "$work/anchored" "the checkpoint in line $line of $anchor"
    head -n "$size" "$work/leaves" > "$work/first"
    [ "$(merkle_root "$work/first")" = "$root" ] || fail "line $line of $anchor has a checkpoint of $size records that are not these"
    echo "   $anchor: its checkpoint of $size records is of these"
done
for response in timestamps/*.tsr; do
    [ -e "$response" ] || continue
    if [ ! -s "$work/roots.pem" ]; then echo "   $response: not checked, for want of ROOTS"; continue; fi
    openssl ts -verify -data checkpoint -in "$response" -CAfile "$work/roots.pem" > /dev/null 2>&1 \
        || fail "$response is no timestamp of the checkpoint"
    openssl ts -reply -in "$response" -text 2> /dev/null | awk -v at="   $response:" '/^Time stamp:/ { $1 = $2 = ""; print at $0 }'
done
echo "OK: $events events of ledger $ledger_id"
