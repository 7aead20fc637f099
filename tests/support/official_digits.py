"""What official evaluation scripts printed for `invented_texts()`, run outside the project.

E2E: tuetschek/e2e-metrics at 1b9c4d8, with the jar files it names (those of pycocoevalcap 1.2 have the same
git object ids), perl 5.36 with XML::Twig, Java 17, LC_ALL=C.UTF-8:
    ./measure_scores.py ref.txt sys.txt
where ref.txt has a reference a line, and an empty line behind those of each text.

WEBNLG, DART: Yale-LILY/dart at bb644b1, folder evaluation. meteor-1.5.jar was built from the sources in its
folder meteor-1.5 (javac, resources added, as its build.xml says). WebNLG: the texts as
data-challenge/testdata_with_lex.xml and submissions/team.txt, then
    python evaluation.py team; bleu_eval_3ref.sh; meteor_eval.sh; ter_eval.sh
DART: references and outputs split at \\W and in lower case, as generate_input_dart.py writes *.target_eval;
the commands of run_eval_on_dart.sh: multi-bleu.perl, prepare_files.py, meteor -l en -norm -r 8, tercom.

CHRF: chrF.py (Popović) of WebNLG/GenerationEval at 8067849, references joined by *#:
    python chrF.py -R ref -H hyp -nw 0

ROUGE: ROUGE-1.5.5.pl, from andersjo/pyrouge at 3b6c415, each text against its first reference alone:
    ROUGE-1.5.5.pl -e data -c 95 -r 1000 -n 2 -a -m -d config.xml
with the F of each text. (The means that it prints besides are taken over random samples of them.)
"""

from __future__ import annotations

DIGEST = "7b6de0063522b76dde3dd22a3e3891fb279278fcebe8789b6adcd4fa58b5919f"
DIGEST_WITH_EMPTY = "87d271c946bafdd36cdc2e380b06ccb57bd6d78c28abb7230b818c4d0d847142"

E2E = {"BLEU": "0.6540", "NIST": "6.8435", "METEOR": "0.4536", "ROUGE_L": "0.7475", "CIDEr": "2.7839"}
E2E_WITH_EMPTY = {
    "BLEU": "0.5922",
    "NIST": "6.0328",
    "METEOR": "0.4005",
    "ROUGE_L": "0.6643",
    "CIDEr": "2.5130",
}

# BLEU as multi-bleu.perl prints it; METEOR and TER with all the digits of the Java programs.
WEBNLG = {
    "webnlg": {"BLEU": "61.05", "METEOR": "0.42252001565653", "TER": "0.32509894909239795"},
    "webnlg seen": {"BLEU": "59.31", "METEOR": "0.412768826866431", "TER": "0.3422526446795271"},
    "webnlg unseen": {"BLEU": "64.17", "METEOR": "0.43966321053353763", "TER": "0.2920989624900239"},
}
DART = {"BLEU": "67.79", "METEOR": "0.4631715525539682", "TER": "0.29398116555206766"}
WEBNLG_WITH_EMPTY = {"BLEU": "56.66", "METEOR": "0.37558871513350084", "TER": "0.3734134024839634"}
DART_WITH_EMPTY = {"BLEU": "63.00", "METEOR": "0.41089990969147033", "TER": "0.34639006414630813"}
CHRF = "74.0341"

# ROUGE-1, ROUGE-2 and ROUGE-L of each text.
ROUGE = (
    ("0.92308", "0.91666", "0.92308"),
    ("0.36363", "0.12904", "0.24242"),
    ("1.00000", "1.00000", "1.00000"),
    ("0.51163", "0.29268", "0.27907"),
    ("0.41667", "0.09091", "0.25000"),
    ("0.94737", "0.88889", "0.94737"),
    ("0.63158", "0.58824", "0.63158"),
    ("0.00000", "0.00000", "0.00000"),
    ("0.50000", "0.23530", "0.27778"),
    ("0.46512", "0.24390", "0.37209"),
    ("0.80000", "0.54545", "0.74286"),
    ("1.00000", "1.00000", "1.00000"),
    ("0.90909", "0.77419", "0.90909"),
    ("0.58824", "0.12500", "0.41177"),
    ("0.30303", "0.06452", "0.30303"),
    ("0.44444", "0.17647", "0.44444"),
    ("0.31250", "0.20000", "0.31250"),
    ("0.32258", "0.20690", "0.32258"),
    ("0.82759", "0.81481", "0.82759"),
    ("0.42424", "0.19355", "0.30303"),
    ("0.48276", "0.22222", "0.27586"),
    ("0.92857", "0.76923", "0.92857"),
    ("0.47368", "0.33333", "0.26316"),
    ("0.94737", "0.35294", "0.63158"),
    ("0.36842", "0.16667", "0.36842"),
    ("0.41177", "0.18750", "0.23530"),
    ("0.29629", "0.16000", "0.29629"),
    ("0.22222", "0.12501", "0.22222"),
    ("0.73684", "0.66667", "0.73684"),
    ("0.51852", "0.32000", "0.29629"),
    ("0.45000", "0.31579", "0.25000"),
    ("0.86957", "0.81818", "0.86957"),
    ("0.73333", "0.64286", "0.73333"),
    ("0.95000", "0.84211", "0.95000"),
    ("0.30769", "0.08333", "0.30769"),
    ("0.30769", "0.16666", "0.30769"),
    ("0.94118", "0.80000", "0.94118"),
    ("0.57143", "0.24242", "0.45714"),
    ("0.27273", "0.00000", "0.27273"),
    ("0.92308", "0.75000", "0.92308"),
    ("1.00000", "1.00000", "1.00000"),
    ("0.97778", "0.74418", "0.84445"),
    ("0.94118", "0.81250", "0.94118"),
    ("0.51429", "0.30303", "0.51429"),
    ("0.56000", "0.08696", "0.24000"),
    ("0.44444", "0.16000", "0.37037"),
    ("0.40000", "0.15790", "0.35000"),
    ("0.00000", "0.00000", "0.00000"),
    ("0.50000", "0.23077", "0.50000"),
    ("0.48485", "0.32258", "0.36364"),
    ("0.60000", "0.42857", "0.60000"),
    ("0.06896", "0.00000", "0.06896"),
    ("1.00000", "1.00000", "1.00000"),
    ("1.00000", "1.00000", "1.00000"),
    ("0.50000", "0.17647", "0.22222"),
    ("0.88235", "0.68750", "0.88235"),
    ("1.00000", "1.00000", "1.00000"),
    ("0.50000", "0.13333", "0.31250"),
    ("0.94737", "0.58824", "0.73684"),
    ("0.33333", "0.11765", "0.22223"),
)
