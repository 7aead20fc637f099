#!/bin/sh
# The demo: from a frozen model and a small file of examples to a prefix, and text before and after.
# Every command is printed before it runs; they are the ones you would type.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p demo

bold='' blue='' plain=''  # colours are for people; a file of what was printed has none
if [ -t 1 ]; then bold=$(printf '\033[1m') blue=$(printf '\033[36m') plain=$(printf '\033[0m'); fi

say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
run() {
  printf '%s$' "$blue"
  for word in "$@"; do
    case $word in *' '*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
  done
  printf '%s\n' "$plain"
  "$@"
}

say "1. The base model: frozen, shared by every prefix. Downloaded once, then kept in your cache."
run foreword pull smollm2-135m-instruct

say "2. A prefix: ten virtual tokens, learned from messages to a small shop and the card for each."
rm -rf demo/triage.run
run foreword train examples/demo/train.jsonl --dev examples/demo/dev.jsonl \
  --steps 150 --evaluate-every 30 --out demo/triage.prefix --overwrite

say "3. Messages it has not seen, without the prefix and with it. Look at the form of the card: that is what"
echo "ten virtual tokens learn in minutes. Choosing the right tag is harder for a model of this size."
run foreword generate --prefix demo/triage.prefix --compare --max-new-tokens 40 \
  "Hi, my order 5520 came this morning but the blue kettle has a dent in the side. Can you send another one before Saturday?" \
  "where is my parcel??? ordered the oak shelf 9 days ago, order 1187, and nobody answers" \
  "Just wanted to say the candles are lovely, my mother cried. No need to reply."

say "4. How good is it? Loss and overlap with the cards written by hand, on the dev examples."
run foreword evaluate examples/demo/dev.jsonl --prefix demo/triage.prefix --baseline --max-new-tokens 40

say "What is there now"
echo "demo/triage.prefix          the prefix: a file of about half a megabyte, yours to keep"
echo "demo/triage.run/curves.png  the curves of its training"
echo "demo/triage.run/log.jsonl   every step of it"
echo
echo "Go on with a message of your own:"
echo "  .venv/bin/foreword generate --prefix demo/triage.prefix \"the mug I got is chipped, order 2041, please refund\""
echo "or with examples of your own, one JSON object with source and target a line:"
echo "  .venv/bin/foreword train yours.jsonl --out yours.prefix"
