//! The table of bad inputs: for each what is typed or handed over, and the words that the answer must hold. Every answer says what is
//! wrong, where, and what to do; the exit code is 2, nothing is written, and no compute was spent.
//!
//! In what is typed `MODEL` is a tiny model that is whole. `@DEEP@` is a hundred thousand brackets, `@LONG@` eight thousand letters.
//! `a.tsv`, two good facts, is always there.

use std::{fs, path::Path, time::Duration};

use assert_cmd::cargo::cargo_bin_cmd;

use crate::cli::MODEL;

/// Longer than anything is refused after.
const TIMEOUT: Duration = Duration::from_secs(20);

const GOOD_FACTS: &str = "subject\trelation\tobject\nRome\tP17\tItaly\nOslo\tP17\tNorway\n";

/// `--set` of a run.
const SETTINGS: &[(&str, &[&str])] = &[
    (
        "train.learning_rate=0",
        &["`train.learning_rate` must be above 0 and at most 1, not 0"],
    ),
    (
        "train.learning_rate=-1",
        &["`train.learning_rate` must be above 0 and at most 1, not -1"],
    ),
    (
        "train.learning_rate=7",
        &[
            "`--set train.learning_rate=7`: `train.learning_rate` must be above 0 and at most 1, not 7",
        ],
    ),
    (
        "data.learn=[{path='a.tsv',weight=-2}]",
        &["`data.learn.weight`: a weight is a number from 0.000001 to 1000000, not -2"],
    ),
    (
        "data.held=[{path='a.tsv',weight=2.0}]",
        &["`data.held`: expected a string, found a table"],
    ),
    (
        "train.learning_rate=x",
        &["`--set train.learning_rate=x`: `train.learning_rate`: expected a number, found \"x\""],
    ),
    (
        "train.learning_rate=nan",
        &["`train.learning_rate` must be above 0 and at most 1, not NaN"],
    ),
    (
        "train.num_epochs=0",
        &["`train.num_epochs` must be at least 1"],
    ),
    (
        "train.batch_size=0",
        &["`train.batch_size` must be at least 1"],
    ),
    (
        "train.gradient_accumulation_steps=0",
        &["`train.gradient_accumulation_steps` must be at least 1"],
    ),
    (
        "train={batch_size=4294967296,gradient_accumulation_steps=4294967296}",
        &["`train.batch_size` times `train.gradient_accumulation_steps` must be at most"],
    ),
    (
        "train.betas=[1.0,0.9]",
        &["`train.betas` must each be 0 or more and below 1, not [1.0, 0.9]"],
    ),
    (
        "train.betas=[0.9]",
        &["`--set train.betas=[0.9]`: `train.betas`: expected a list of 2, found a list of 1"],
    ),
    ("train.eps=0", &["`train.eps` must be above 0, not 0"]),
    (
        "train.weight_decay=-1",
        &["`train.weight_decay` must be 0 or more, not -1"],
    ),
    (
        "train.max_grad_norm=-1",
        &["`train.max_grad_norm` must be 0 or more, not -1"],
    ),
    (
        "train.max_length=0",
        &["`train.max_length` must be at least 2: one token of the prompt and one of the target"],
    ),
    (
        "train.save_every=0",
        &["`train.save_every` must be at least 1"],
    ),
    (
        "train.ema_decay=1",
        &["`train.ema_decay` must be 0 or more and below 1, not 1"],
    ),
    (
        "train.ema_decay=-0.1",
        &["`train.ema_decay` must be 0 or more and below 1, not -0.1"],
    ),
    (
        "train.early_stopping={accuracy=2}",
        &["`train.early_stopping.accuracy` must be above 0 and at most 1, not 2"],
    ),
    (
        "train.early_stopping={patience=0}",
        &["`train.early_stopping.patience` must be at least 1"],
    ),
    (
        "train.early_stopping={patience=2}",
        &["waits for the validation loss to improve, and there is none"],
    ),
    ("measure.every=0", &["`measure.every` must be at least 1"]),
    (
        "measure.max_facts=0",
        &["`measure.max_facts` must be at least 1"],
    ),
    (
        "measure.behaviour=always",
        &[
            "`measure.behaviour` is `always`",
            "it is one of every, true, false",
        ],
    ),
    (
        "data.validation_share=1",
        &["`data.validation_share` must be above 0 and below 1, not 1"],
    ),
    (
        "data.validation_share=0.5",
        &["takes a share of the chats and texts of `data.learn`, which has 0 different ones"],
    ),
    (
        "data.validation=['a.tsv']",
        &[
            "a.tsv holds facts",
            "facts that are only measured are given by `data.held`",
        ],
    ),
    (
        "train.trainable=",
        &[
            "`train.trainable` `` is neither a group (k, q, v, o, attn, gate+up, down, ffn, all) nor a pattern of tensor names (did you mean `k`?)",
        ],
    ),
    (
        "train.trainable=nothing",
        &[
            "`train.trainable` `nothing` is neither a group (k, q, v, o, attn, gate+up, down, ffn, all) nor a pattern of tensor names",
        ],
    ),
    (
        "train.trainable=model.nowhere.*",
        &[
            "`train.trainable`: no tensor matches \"model.nowhere.*\"",
            "did you mean \"model.embed_tokens.weight\"?",
        ],
    ),
    (
        "train.trainable=ffn@9-3",
        &[
            "`train.trainable` `ffn@9-3`: `@` is followed by a layer or a range of layers, counted from 0, such as `ffn@0-9`",
        ],
    ),
    (
        "train.trainable=ffn@7",
        &[
            "`train.trainable`: no tensor matches \"ffn@7\"",
            "did you mean \"ffn\"?",
        ],
    ),
    (
        "train.lr_scheduler=cubic",
        &[
            "`--set train.lr_scheduler=cubic`: `train.lr_scheduler` is `cubic`",
            "it is one of constant, cosine, linear",
        ],
    ),
    (
        "train.warmup_steps=-3",
        &[
            "`--set train.warmup_steps=-3`: `train.warmup_steps`: expected a whole number, 0 or more, found -3",
        ],
    ),
    ("train.lora={r=0}", &["`train.lora.r` must be at least 1"]),
    (
        "train.lora={target_modules=['x_proj']}",
        &[
            "`train.lora.target_modules`: no linear layer is named \"x_proj\"",
            "did you mean \"q_proj\"?",
        ],
    ),
    (
        "train.lora={alpha=0}",
        &["`train.lora.alpha` must be at least 1"],
    ),
    (
        "train.lora={variant='qlora'}",
        &[
            "`--set train.lora={variant='qlora'}`: `train.lora.variant` is `qlora`",
            "did you mean `lora`?",
        ],
    ),
    (
        "train.lora={r=3,foo=1}",
        &[
            "`--set train.lora={r=3,foo=1}`: unknown key `foo` in [train.lora]",
            "known keys: r, alpha, target_modules, variant",
        ],
    ),
    (
        "train.lrr=1",
        &[
            "`--set train.lrr=1`: unknown key `lrr` in [train]",
            "did you mean `learning_rate`?",
        ],
    ),
    (
        "train.lr=1",
        &[
            "`--set train.lr=1`: unknown key `lr` in [train]",
            "did you mean `learning_rate`?",
        ],
    ),
    (
        "num_train_epochs=3",
        &[
            "`--set num_train_epochs=3`: unknown key `num_train_epochs` at the top level",
            "did you mean `train.num_epochs`?",
        ],
    ),
    (
        "trian.lr=1",
        &[
            "`--set trian.lr=1`: unknown key `trian` at the top level",
            "did you mean `train`?",
        ],
    ),
    (
        "train=3",
        &["`--set train=3`: `train`: expected a table, found 3"],
    ),
    (
        "method.kind=distill",
        &[
            "`--set method.kind=distill`: `method.kind` is `distill`",
            "did you mean `self-distill`?",
        ],
    ),
    (
        "method.lambda=-1",
        &["`method.lambda` must be 0 or more, not -1"],
    ),
    (
        "method.temperature=0",
        &["`method.temperature` must be above 0, not 0"],
    ),
    (
        "method.temperature=-1",
        &["`method.temperature` must be above 0, not -1"],
    ),
    (
        "method.vocab_subset=half",
        &[
            "`--set method.vocab_subset=half`: `method.vocab_subset` is `half`",
            "it is one of full, top, random",
        ],
    ),
    (
        "method.vocab_subset={top=0}",
        &["`method.vocab_subset` must be at least 1 token"],
    ),
    (
        "method.vocab_subset={random=0}",
        &["`method.vocab_subset` must be at least 1 token"],
    ),
    (
        "method.teacher=dead",
        &[
            "`--set method.teacher=dead`: `method.teacher` is `dead`",
            "it is one of online, base, hidden, topk, auto",
        ],
    ),
    (
        "method.teacher=live",
        &[
            "`--set method.teacher=live`: `method.teacher` is `live`",
            "did you mean `online`?",
        ],
    ),
    (
        "method.teacher=topk",
        &[
            "`method.teacher` `topk` stores only the teacher's most likely tokens, which is exact only with `vocab_subset = { top = N }`: use `hidden`",
        ],
    ),
    (
        "method.reduction=sum",
        &[
            "`--set method.reduction=sum`: `method.reduction` is `sum`",
            "it is one of example, token",
        ],
    ),
    (
        "method.snapshot_epochs=-1",
        &[
            "`--set method.snapshot_epochs=-1`: `method.snapshot_epochs`: expected a whole number, 0 or more, found -1",
        ],
    ),
    (
        "method.ewc={strength=-1}",
        &["`method.ewc.strength` must be 0 or more, not -1"],
    ),
    (
        "method.ewc={previous_runs=['nowhere']}",
        &[
            "nowhere: there is no such run directory",
            "name a directory written by `unforget tune` or `unforget demo`",
        ],
    ),
    (
        "method.replay={ratio=2}",
        &[
            "replay",
            "give known facts with `data.keep`, or remove `method.replay`",
        ],
    ),
    (
        "method.replay={target='x'}",
        &[
            "`--set method.replay={target='x'}`: `method.replay.target` is `x`",
            "it is one of label, teacher",
        ],
    ),
    (
        "method.decoys={ratio=0}",
        &["`method.decoys.ratio` is 0, which needs `method.project`"],
    ),
    (
        "method.decoys={ratio=11}",
        &[
            "`method.decoys.ratio` is the number of decoys in an epoch for each row: from 0 to 10, not 11",
        ],
    ),
    (
        "train={optimizer_in_backward=true,gradient_accumulation_steps=2}",
        &[
            "`train.optimizer_in_backward` updates each layer before the next gradient is computed: `train.gradient_accumulation_steps` must be 1",
        ],
    ),
    (
        "method.decoys={strength=-1}",
        &["`method.decoys.strength` must be 0 or more, not -1"],
    ),
    (
        "method.project={energy=2}",
        &["`method.project.energy` must be above 0 and at most 1, not 2"],
    ),
    (
        "method.project={every=0}",
        &["`method.project.every` must be at least 1"],
    ),
    (
        "method.budget=-1",
        &["`method.budget` must be from 0 to 100 percentage points, not -1"],
    ),
    (
        "method.goal=tasks",
        &[
            "`--set method.goal=tasks`: `method.goal` is `tasks`",
            "did you mean `task`?",
        ],
    ),
    (
        "method.interpolate={min_retained=2}",
        &["`method.interpolate.min_retained` must be above 0 and at most 1, not 2"],
    ),
    (
        "method.exclude_target=left-out",
        &[
            "`--set method.exclude_target=left-out`: `method.exclude_target`: expected `true` or `false`, found \"left-out\"",
        ],
    ),
    (
        "method.target_token=left-out",
        &[
            "`--set method.target_token=left-out`: unknown key `target_token` in [method]",
            "did you mean `exclude_target`?",
        ],
    ),
    (
        "data.audit={num_prompts=0}",
        &["`data.audit.num_prompts` must be at least 1"],
    ),
    (
        "data.audit={shots=-1}",
        &[
            "`--set data.audit={shots=-1}`: `data.audit.shots`: expected a whole number, 0 or more, found -1",
        ],
    ),
    (
        "data.audit={samples=0}",
        &["`data.audit.samples` must be at least 1"],
    ),
    (
        "data.audit={top_p=0}",
        &[
            "`--set data.audit={top_p=0}`: unknown key `top_p` in [data.audit]",
            "known keys: num_prompts, shots, samples, sample",
        ],
    ),
    (
        "data.audit={temperature=0}",
        &[
            "`--set data.audit={temperature=0}`: unknown key `temperature` in [data.audit]",
            "`temperature` is a key of [method]",
        ],
    ),
    (
        "data.min_highly_known=2",
        &["`data.min_highly_known` must be from 0 to 1, not 2"],
    ),
    (
        "data.match=fuzzy",
        &[
            "`--set data.match=fuzzy`: `data.match` is `fuzzy`",
            "it is one of exact, contains",
        ],
    ),
    (
        "data.template=x",
        &[
            "`--set data.template=x`: unknown key `template` in [data]",
            "a chat uses the model's own template",
        ],
    ),
    (
        "data.lern=['a.tsv']",
        &[
            "`--set data.lern=['a.tsv']`: unknown key `lern` in [data]",
            "did you mean `learn`?",
        ],
    ),
    (
        "measure.drfit=true",
        &[
            "`--set measure.drfit=true`: unknown key `drfit` in [measure]",
            "did you mean `drift`?",
        ],
    ),
    (
        "measure.drift=maybe",
        &[
            "`--set measure.drift=maybe`: `measure.drift`: expected `true` or `false`, found \"maybe\"",
        ],
    ),
    (
        "seed=-1",
        &["`--set seed=-1`: `seed`: expected a whole number, 0 or more, found -1"],
    ),
    #[cfg(not(feature = "gpu"))]
    (
        "device=gpu",
        &["`--set device=gpu`: `device` is `gpu`: this program was built without GPUs"],
    ),
    (
        "model=3",
        &["`--set model=3`: `model`: expected a string, found 3"],
    ),
    (
        "=3",
        &[
            "`--set =3`: unknown key `` at the top level",
            "known keys: model, model_dtype, out, seed, device, baseline, data, method,",
        ],
    ),
    (
        "nonsense",
        &[
            "`--set nonsense` has no `=`",
            "write it as `--set train.learning_rate=5e-5`",
        ],
    ),
    ("out=", &["`out` is empty"]),
];

/// The file of a run's new facts.
#[rustfmt::skip]
const FACTS: &[(&str, &[u8], &[&str])] = &[
    ("a.tsv", b"", &["a.tsv is empty", "a table begins with a line of column names: subject,"]),
    ("a.tsv", b"subject\trelation\tobject\n", &["a.tsv has column names but no rows"]),
    ("a.tsv", b"subject\trelation\nRome\tP17\n", &["a.tsv, line 1: there is no column `object`", "the first line names the columns: subject, relation,"]),
    ("a.tsv", b"subject\trelation\tobjct\nRome\tP17\tItaly\n", &["a.tsv, line 1: there is no column `object`", "should the column `objct` be called `object`?"]),
    ("a.tsv", b"subject\trelation\tobject\nRome\tP17\n", &["a.tsv, line 2: field `object` is missing: the row has 2 fields, the header has 3", "fix the file"]),
    ("a.tsv", b"subject\trelation\tobject\nRome\tP17\tItaly\tx\n", &["a.tsv, line 2: the row has 4 fields, the header has 3: quote a field that contains the separator", "fix the file"]),
    ("a.tsv", b"subject\trelation\tobject\n\tP17\tItaly\n", &["a.tsv, line 2: field `subject` is empty", "fix the file"]),
    ("a.tsv", b"subject\trelation\tobject\nRome\tP17\t\n", &["a.tsv, line 2: field `object` is empty", "fix the file"]),
    ("a.tsv", b"subject\trelation\tobject\nRome\t\tItaly\n", &["a.tsv, line 2: field `relation` is empty", "fix the file"]),
    ("a.tsv", b"subject\trelation\tobject\nRome\tP17\t  \n", &["a.tsv, line 2: field `object` is empty", "fix the file"]),
    ("a.tsv", b"subject\trelation\tobject\nRome\tP9999\tItaly\n", &["a.tsv, line 2: field `question` is missing: the relation `P9999` has no built-in question template", "fix the file"]),
    ("a.tsv", b"subject\trelation\tobject\nRome\tP17\tItaly\nRome\tP17\tFrance\n", &["`Which country is Rome located in?` has two answers: `Italy` (a.tsv, line 2) and `France` (a.tsv, line 3)", "remove one of the rows, or list the other answer under"]),
    ("a.tsv", b"subject\tsubject\trelation\tobject\nA\tA\tP17\tB\n", &["a.tsv, line 1: there are two columns `subject`"]),
    ("a.tsv", b"subject\trelation\tobject\nR\xffme\tP17\tItaly\n", &["a.tsv, line 2: field `subject` is not UTF-8 at byte 2", "fix the file"]),
    ("a.tsv", b"subject\trelation\tobject\nRo\0me\tP17\tItaly\n", &["a.tsv, line 2: field `subject` has a NUL character; is the file binary, or UTF-16?", "fix the file"]),
    ("a.tsv", b"subject\trelation\tobject\n@LONG@\tP17\tItaly\n", &["a.tsv, line 2: prompt and answer have 8017 tokens, more than 256", "raise `train.max_length` (up to the model's context), or"]),
    ("a.tsv", b"subject\trelation\tobject\tquestion\nRome\tP17\t\tWhere?\n", &["a.tsv, line 2: field `object` is empty", "fix the file"]),
    ("a.csv", b"subject,relation,object\n\"Rome,P17,Italy\n", &["a.csv, line 2: a quote opens here and is not closed", "fix the file"]),
    ("a.csv", b"subject,relation,object\nRome,P17\n", &["a.csv, line 2: field `object` is missing: the row has 2 fields, the header has 3", "fix the file"]),
    ("a.csv", b"subject;relation;object\nRome;P17;Italy\n", &["a.csv, line 1: there are no column names: the first line has semicolons between them", "save the table with commas, as .csv"]),
    ("a.jsonl", b"{\n", &["a.jsonl, line 1: not JSON: EOF while parsing an object at column 1: each row is one line", "fix the file"]),
    ("a.jsonl", b"[1]\n", &["a.jsonl, line 1: the row is an array; an object is needed", "fix the file"]),
    ("a.jsonl", b"3\n", &["a.jsonl, line 1: the row is a number; an object is needed", "fix the file"]),
    ("a.jsonl", b"{\"subject\":\"Rome\",\"relation\":\"P17\"}\n", &["a.jsonl, line 1: field `object` is missing", "fix the file"]),
    ("a.jsonl", b"{\"subject\":null,\"relation\":\"P17\",\"object\":\"Italy\"}\n", &["a.jsonl, line 1: field `subject` is empty", "fix the file"]),
    ("a.jsonl", b"@DEEP@\n", &["a.jsonl, line 1: not JSON: recursion limit exceeded at column 128", "fix the file"]),
    ("a.jsonl", b"{\"subject\":\"A\",\"relation\":\"P17\",\"object\":\"B\"}{\"subject\":\"C\",\"relation\":\"P17\",\"object\":\"D\"}\n", &["a.jsonl, line 1: not JSON: a second row stands in the same line at column 46", "fix the file"]),
    ("a.jsonl", b"{\"messages\":[]}\n", &["a.jsonl, line 1: field `messages` has no assistant message: there is nothing to train", "fix the file"]),
    ("a.jsonl", b"{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}\n", &["a.jsonl, line 1: field `messages` has no assistant message: there is nothing to train", "fix the file"]),
    ("a.jsonl", b"{\"messages\":[{\"role\":\"usr\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"x\"}]}\n", &["a.jsonl, line 1: field `messages` has the role `usr`, which is none of system, user, assistant, tool, developer, ipython and function, in message 1", "fix the file"]),
    ("a.jsonl", b"{\"prompt\":\"x\"}\n", &["a.jsonl, line 1: field `subject` is missing", "fix the file"]),
    ("a.jsonl", b"{\"prompt\":\"x\",\"completion\":\"\"}\n", &["a.jsonl, line 1: field `completion` is empty: there is nothing to train", "fix the file"]),
    ("a.jsonl", b"{\"text\":\"\"}\n", &["a.jsonl, line 1: field `text` is empty: there is nothing to train", "fix the file"]),
    ("a.jsonl", b"{\"subject\":\"Rome\",\"relation\":\"P17\",\"object\":\"Italy\"}\n{\"text\":\"x\"}\n", &["a.jsonl, line 2: field `subject` is missing", "fix the file, or skip broken rows with --skip-bad-rows"]),
    ("a.jsonl", b"{\"subject\":\"Rome\",\"relation\":\"P17\",\"object\":\"Ita", &["a.jsonl, line 1: not JSON: EOF while parsing a string at column 48: each row is one line", "fix the file"]),
    ("P17.json", b"{\"question\":\"x\"}", &["P17.json: the file holds an object; an array of rows is needed", "a file with one row a line needs the extension .jsonl"]),
    ("P17.json", b"[", &["P17.json, line 1: not JSON: EOF while parsing a list"]),
    ("P17.json", b"[{\"question\":\"Which country is Rome located in?\"}]", &["P17.json, row 1: field `answer` is missing: the row has `question`", "fix the file"]),
    ("P17.json", b"[{\"question\":\"Which country is Rome located in?\",\"answers\":\"Italy\"}]", &["P17.json, row 1: field `answers` is not a list of texts", "fix the file"]),
    ("P17.json", b"[{\"question\":\"Which country is Rome located in?\",\"answers\":[]}]", &["P17.json, row 1: field `answers` is empty", "fix the file"]),
    ("x.json", b"[{\"question\":\"Who?\",\"answers\":[\"Italy\"]}]", &["x.json, row 1: field `question` follows none of the 24 templates of EntityQuestions: `Who?`", "fix the file"]),
    ("P17.json", b"@DEEP@", &["P17.json, line 1: not JSON: recursion limit exceeded"]),
    ("a.parquet", b"PAR1xxxx", &["a.parquet: not a readable Parquet file"]),
    ("a.xlsx", b"x", &["a.xlsx: `.xlsx` is a spreadsheet, which is not read", "known extensions: .tsv, .csv, .jsonl, .json and .parquet"]),
];

/// Files that are there, and what is typed.
#[rustfmt::skip]
#[allow(clippy::type_complexity, reason = "files, arguments, words")]
const COMMANDS: &[(&[(&str, &[u8])], &str, &[&str])] = &[
    (&[], "tun", &["unrecognized subcommand 'tun'", "tip: a similar subcommand exists: 'tune'"]),
    (&[], "tune MODEL --lern a.tsv", &["unexpected argument '--lern' found", "tip: a similar argument exists: '--learn'"]),
    (&[], "tune MODEL --seed x --out run", &["invalid value 'x' for '--seed <N>': invalid digit found in string"]),
    (&[], "tune MODEL --seed -1 --out run", &["unexpected argument '-1' found", "tip: to pass '-1' as a value, use '-- -1'"]),
    (&[], "ask MODEL hi --threads 0", &["invalid value '0' for '--threads <N>': number would be zero for non-zero type"]),
    (&[], "ask MODEL hi --device tpu", &["invalid value 'tpu' for '--device <DEVICE>': expected cpu, gpu, gpu:N or auto"]),
    #[cfg(not(feature = "gpu"))]
    (&[], "ask MODEL hi --device gpu", &["`--device gpu`: this program was built without GPUs", "leave `--device` out, or install a program that can use one: `cargo install --path . --features gpu`"]),
    #[cfg(feature = "gpu")]
    (&[], "ask MODEL hi --device gpu:99", &["no GPU 99: this machine has ", "`unforget devices` lists what there is"]),
    #[cfg(feature = "gpu")]
    (&[], "demo --device gpu", &["`--device gpu`: this command compares runs with recorded ones, which were made on the CPU"]),
    (&[], "tune", &["the following required arguments were not provided:", ">"]),
    (&[], "tune MODEL --learn a.tsv", &["no run directory is named", "add `--out runs/NAME`"]),
    (&[], "tune MODEL --out run", &["there is nothing to train on: neither new facts (`data.learn`) nor known ones (`data.keep`) are given", "name a file with facts, such as `--learn new.tsv`"]),
    (&[], "tune MODEL --learn none.tsv --out run", &["cannot read the facts `none.tsv`: No such file or directory (os error 2)", "give a .tsv, .csv, .jsonl, .json or .parquet file, or `pack:world`,"]),
    (&[("d/x", b"")], "tune MODEL --learn d --out run", &["cannot read the facts `d`: Is a directory (os error 21)", "give a .tsv, .csv, .jsonl, .json or .parquet file, or `pack:world`,"]),
    (&[("run/x", b"mine")], "tune MODEL --learn a.tsv --out run", &["`run` already exists and is not empty", "give another `--out`, or `--force` to write into it"]),
    (&[("run", b"mine")], "tune MODEL --learn a.tsv --out run", &["`run` is a file, not a directory", "give another `--out`"]),
    (&[("run", b"mine")], "tune MODEL --learn a.tsv --out run/x", &["cannot write to `run/x`: not a directory", "give a path in a writable directory"]),
    (&[], "tune ./nowhere --learn a.tsv --out run", &["model `./nowhere` not found: no such file or directory", "a model is a Hugging Face directory, a .gguf file, a hub id"]),
    (&[], "tune smollm2-135 --learn a.tsv --out run", &["model `smollm2-135` not found: no such file or directory, and not in the registry", "did you mean `smollm2-135m`? the registry has: smollm2-135m, gemma3-270m"]),
    (&[], "tune '' --learn a.tsv --out run", &["`MODEL`: `model` is empty"]),
    (&[], "tune MODEL --learn a.tsv --out run --method sfd", &["`--method`: `method.kind` is `sfd`", "did you mean `sft`?"]),
    (&[], "tune MODEL --learn a.tsv --out run --budget=-1", &["`--budget`: `method.budget` must be from 0 to 100 percentage points, not -1"]),
    (&[], "tune MODEL --learn a.tsv --out run --budget many", &["invalid value 'many' for '--budget <PP>': invalid float literal"]),
    (&[], "tune MODEL --learn a.tsv --out run --baseline nowhere", &["nowhere: there is no such run directory", "name a directory written by `unforget tune` or `unforget demo`"]),
    (&[("c.toml", b"model = ")], "tune c.toml", &["`c.toml` line 1: not TOML: string values must be quoted, expected literal string"]),
    (&[("c.toml", b"modle = 'x'\n")], "tune c.toml", &["`c.toml` line 1: unknown key `modle` at the top level", "did you mean `model`?"]),
    (&[("c.toml", b"model='MODEL'\nlr=1\n")], "tune c.toml", &["`c.toml` line 2: unknown key `lr` at the top level", "did you mean `train.learning_rate`?"]),
    (&[("c.toml", b"\xff\xfe")], "tune c.toml", &["`c.toml` line 1: not UTF-8 text", "an experiment file is TOML, which is UTF-8"]),
    (&[("c.toml", b"")], "tune c.toml", &["`c.toml` is empty", "an experiment names at least a `model` and an `out`"]),
    (&[("c.toml", b"model='m'\nout='run'\n[train]\nlearning_rate={a=1}\n")], "tune c.toml", &["`c.toml` line 4: `train.learning_rate`: expected a number, found a table"]),
    (&[("c.toml", b"model='MODEL'\nout='run'\n[train]\nlearning_rate=-1\nnum_epochs=0\n[data]\nlearn=['a.tsv']\n")], "tune c.toml", &["`c.toml` has 2 errors", "`c.toml` line 5: `train.num_epochs` must be at least 1", "`c.toml` line 4: `train.learning_rate` must be above 0 and at most 1, not -1"]),
    (&[("c.toml", b"base_model='MODEL'\noutput_dir='run'\nmicro_batch_size=2\nsequence_len=512\nlora_r=8\nsample_packing=true\n")], "tune c.toml", &["`c.toml` has 6 errors", "`c.toml` line 1: unknown key `base_model` at the top level (did you mean `model`?)", "`c.toml` line 3: unknown key `micro_batch_size` at the top level (did you mean `train.batch_size`?)", "`c.toml` line 5: unknown key `lora_r` at the top level (did you mean `train.lora.r`?)", "there is no such setting: batches are computed without padding"]),
    (&[("c.toml", b"model='MODEL'\nout='run'\nlearning_rate=1e-4\n")], "tune c.toml", &["`c.toml` line 3: unknown key `learning_rate` at the top level", "`learning_rate` is a key of [train]"]),
    (&[], "tune MODEL --learn a.tsv --out run --epochs=-3", &["`--epochs`: `train.num_epochs`: expected a whole number, 0 or more, found -3"]),
    (&[], "tune MODEL --learn a.tsv --out run --lr 0", &["`--lr`: `train.learning_rate` must be above 0 and at most 1, not 0"]),
    (&[], "tune MODEL --learn a.tsv --out run --batch-size 0", &["`--batch-size`: `train.batch_size` must be at least 1"]),
    (&[], "tune MODEL --learn a.tsv --out run --seed 18446744073709551615", &["`--seed` is above the largest integer that TOML can hold"]),
    (&[("c.toml", b"model='MODEL'\nout='run'\nseed=2020-01-01\n")], "tune c.toml", &["`c.toml` line 3: `seed`: expected a whole number, 0 or more, found a date"]),
    (&[("c.toml", b"seed=1\nseed=2\n")], "tune c.toml", &["`c.toml` line 2: not TOML: duplicate key"]),
    (&[("c.toml", b"model=@DEEP@")], "tune c.toml", &["`c.toml` line 1: not TOML: cannot recurse further; max recursion depth met"]),
    (&[], "tune none.toml", &["cannot read `none.toml`: No such file or directory (os error 2)", "give the path of an experiment file (TOML)"]),
    (&[("h.tsv", b"subject\trelation\tobject\nBonn\tP17\tGermany\nBonn\tP17\tItaly\n")], "tune MODEL --learn a.tsv --held h.tsv --out run", &["`Which country is Bonn located in?` has two answers: `Germany` (h.tsv, line 2) and `Italy` (h.tsv, line 3)", "remove one of the rows, or list the other answer under"]),
    (&[], "ask MODEL", &["the following required arguments were not provided:", "<PROMPT>"]),
    (&[("p.jsonl", b"{\"prompt\":\"x\"}\n")], "ask MODEL hi --prompts p.jsonl", &["the argument '[PROMPT]' cannot be used with '--prompts <FILE.jsonl>'"]),
    (&[], "ask MODEL --prompts none.jsonl", &["cannot read `none.jsonl`: No such file or directory (os error 2)"]),
    (&[("p.jsonl", b"{\"prompt\":\"x\"}\n{\"promt\":\"y\"}\n")], "ask MODEL --prompts p.jsonl", &["p.jsonl, line 2: field `prompt` is missing", "each row is an object such as {\"prompt\": \"...\"}"]),
    (&[("p.jsonl", b"{\"prompt\":\"x\"}\nyes\n")], "ask MODEL --prompts p.jsonl", &["p.jsonl, line 2: not JSON: expected value", "each row is an object such as {\"prompt\": \"...\"}"]),
    (&[("p.jsonl", b"{\"prompt\":[3]}\n")], "ask MODEL --prompts p.jsonl", &["p.jsonl, line 1: field `prompt` is a list; text is needed", "each row is an object such as {\"prompt\": \"...\"}"]),
    (&[("p.jsonl", b"")], "ask MODEL --prompts p.jsonl", &["p.jsonl has no rows", "each row is an object such as {\"prompt\": \"...\"}"]),
    (&[], "ask MODEL hi --temperature=-1", &["`--temperature` must be 0 or more"]),
    (&[], "ask MODEL hi --temperature nan", &["`--temperature` must be 0 or more"]),
    (&[], "ask MODEL hi --samples 3", &["3 greedy answers would all be the same", "give a `--temperature` above 0, such as 0.5"]),
    (&[], "ask MODEL hi --samples 0 --temperature 1", &["`--samples` and `--max-new-tokens` must be at least 1"]),
    (&[], "ask MODEL @LONG@", &["row 1 needs 8001 tokens, but the model's context is 256", "shorten the text, or use a model with a longer context"]),
    (&[], "ask MODEL hi --max-new-tokens many", &["invalid value 'many' for '--max-new-tokens <N>': invalid digit found in string"]),
    (&[("s.jsonl", b"{\"prompt\":\"x\"}\n")], "score MODEL s.jsonl", &["s.jsonl, line 1: field `completion` is missing", "each row is an object such as {\"prompt\": \"...\","]),
    (&[], "score MODEL none.jsonl", &["cannot read `none.jsonl`: No such file or directory (os error 2)"]),
    (&[("s.jsonl", b"{\"prompt\":\"x\",\"completion\":\"@LONG@\"}\n")], "score MODEL s.jsonl", &["row 1 needs 8001 tokens, but the model's context is 256", "shorten the text, or use a model with a longer context"]),


    (&[], "audit MODEL a.tsv --out o --num-prompts 0", &["`--num-prompts` and `--samples` must be at least 1"]),
    (&[], "audit MODEL a.tsv --out o --temperature 0", &["`--temperature` must be above 0"]),
    (&[], "audit MODEL pack:wrld --out o", &["there is no built-in pack `pack:wrld`", "the built-in pack is `pack:world`"]),
    (&[("o/x", b"")], "audit MODEL a.tsv --out o", &["`o` already exists and is not empty", "give another `--out`, or `--force` to write into it"]),
    (&[], "resume nowhere", &["nowhere: there is no such run directory", "name a directory written by `unforget tune` or `unforget demo`"]),
    (&[("d/x", b"")], "resume d", &["d is not a run directory: it has no config.toml", "name a directory written by `unforget tune` or `unforget demo`"]),
    (&[("d/config.toml", b"model=")], "resume d", &["`d/config.toml` line 1: not TOML: string values must be quoted, expected literal string"]),
    (&[("d/config.toml", b"model='nowhere'\nout='d'\n[data]\nlearn=['a.tsv']\n")], "resume d", &["model `nowhere` not found: no such file or directory, and not in the registry", "the registry has: smollm2-135m, gemma3-270m"]),
    (&[], "compare nowhere", &["nowhere: there is no such run directory", "name a directory written by `unforget tune` or `unforget demo`"]),
    (&[], "compare MODEL MODEL", &["to compare two models, `--facts` is needed", "add `--facts FACTS`"]),
    (&[], "compare MODEL MODEL --metric acc", &["`--metric` and `--filter` are for two files of samples", "name two files that end in .jsonl"]),
    (&[("s.jsonl", b"{}")], "compare s.jsonl", &["`s.jsonl` is a file of samples, and there is no other", "of both models"]),
    (&[("s.jsonl", b"{}")], "compare s.jsonl MODEL", &["one of the two is a file of samples, and `", "of both models"]),
    (&[("s.jsonl", b"{}")], "compare s.jsonl s.jsonl --facts a.tsv", &["`--facts` is for two models", "leave out `--facts`"]),
    (&[("s.jsonl", b"{}")], "compare s.jsonl s.jsonl", &["`s.jsonl` line 1: missing field `doc_id`", "as `lm_eval --log_samples` writes it"]),
    (&[("d/config.toml", b"model='x'\n")], "compare d", &["the run `d` is not finished", "unforget resume d"]),
    (&[], "report --out r.html", &["the following required arguments were not provided:", "<RUNS>..."]),
    (&[("d/x", b"")], "report d --out r.html", &["d is not a run directory", "name a directory written by `unforget tune` or `unforget demo`"]),
    (&[("d/two/config.toml", b""), ("d/one/config.toml", b"")], "report d --out r.html", &["d is not a run directory", "it contains runs: d/one d/two"]),
    (&[("d/config.toml", b"model='x'\n"), ("d/metrics.jsonl", b"")], "report d --out r.html", &["d/result.json is missing", "if the run was interrupted, complete it with `unforget resume d`"]),
    (&[("d/config.toml", b"model='x'\n"), ("d/result.json", b"{")], "report d --out r.html", &["d/result.json, line 1: EOF while parsing an object", "the file is truncated, was edited, or is from another version; repeat"]),
    (&[], "export nowhere --to hf --out e", &["model `nowhere` not found: no such file or directory, and not in the registry", "the registry has: smollm2-135m, gemma3-270m"]),
    (&[], "export MODEL --to onnx --out e", &["invalid value 'onnx' for '--to <TO>'"]),
    (&[], "export MODEL --to peft --out e", &["is not a run directory: it has no config.toml", "name a directory written by `unforget tune` or `unforget demo`"]),
    (&[], "drift MODEL MODEL", &["the following required arguments were not provided:", "--new <FACTS>...", "--held <FACTS>..."]),
    (&[], "drift MODEL MODEL --new a.tsv", &["the following required arguments were not provided:", "--held <FACTS>..."]),
    (&[], "drift MODEL MODEL --new a.tsv --held a.tsv --layer 99", &["layer 99 is out of range", "use 0 (embeddings) to 2; the default is half of the layers"]),
    (&[], "drift MODEL MODEL --new a.tsv --held a.tsv --tokens 0", &["has 300", "use 1 to 300; the default is 76"]),
    (&[], "forecast MODEL --learn a.tsv", &["the following required arguments were not provided:", "--held <FACTS>..."]),
    (&[], "forecast MODEL", &["the following required arguments were not provided:", "--learn <FACTS>...", "--held <FACTS>..."]),
    (&[], "synth MODEL --relation P17 --facts a.tsv", &["the following required arguments were not provided:", "--n <N>"]),
    (&[], "synth MODEL --relation P36 --facts a.tsv --n 3", &["`--facts` has no facts of P36", "it has P17"]),
    (&[], "synth MODEL --relation P17 --facts a.tsv --n 3 --keys real", &["invalid value 'real' for '--keys <KEYS>'"]),
    (&[], "synth MODEL --relation P17 --facts a.tsv --n 1000000", &["cannot make more than 11 distinct names from these facts", "give more facts, or generate fewer"]),
    (&[], "synth MODEL --relation P17 --facts a.tsv --n 0", &["invalid value '0' for '--n <N>': number would be zero for non-zero type"]),
    (&[], "reproduce fig33", &["unknown experiment `fig33`", "did you mean `fig3`? Experiments: fig2, table1, fig3, fig4,"]),
    (&[], "reproduce fig2 --scale big", &["fig2 has no scale `big`", "scales: paper, small, smoke"]),
    (&[("e.toml", b"name=")], "reproduce e.toml", &["e.toml: TOML parse error at line 1, column 6"]),
    (&[("e.toml", b"name='e'\ntitle='e'\nmodel='MODEL'\naudit_num_prompts=1\nset=[]\n[scale.small]\nrelations=['P17']\n")], "reproduce e.toml", &["e.toml: no `[[arm]]`: there is nothing to run"]),
    (&[], "pull ''", &["model `` not found: no such file or directory, and not in the registry", "the registry has: smollm2-135m, gemma3-270m"]),
    (&[], "pull smollm3", &["model `smollm3` not found: no such file or directory, and not in the registry", "did you mean `smollm2-135m`? the registry has: smollm2-135m, gemma3-270m"]),
];

/// Types `command` in a folder with these files; it must be refused with these words.
fn refused(files: &[(&str, &[u8])], command: &[String], words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let good: (&str, &[u8]) = ("a.tsv", GOOD_FACTS.as_bytes());
    for (name, content) in [good].iter().chain(files) {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, expand_bytes(content)).unwrap();
    }
    let before = list_dir(dir.path());
    let output = cargo_bin_cmd!("unforget")
        .current_dir(dir.path())
        .env("XDG_CACHE_HOME", dir.path().join("cache"))
        .env("HF_HUB_OFFLINE", "1")
        .args(command)
        .timeout(TIMEOUT)
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    let command_line = command.join(" ");
    assert_eq!(output.status.code(), Some(2), "{command_line}\n{message}");
    assert!(message.contains("error: "), "{command_line}\n{message}");
    for word in words {
        assert!(
            message.contains(word),
            "{command_line}\nhas no {word:?}:\n{message}"
        );
    }
    assert!(!message.contains("panicked"), "{command_line}\n{message}");
    assert_eq!(
        list_dir(dir.path()),
        before,
        "{command_line}: something was written"
    );
}

fn list_dir(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name != "cache").collect();
    names.sort_unstable();
    names
}

/// The content with its long parts written out.
fn expand_bytes(content: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(content) {
        Err(_) => content.to_vec(),
        Ok(text) => expand(text).replace("MODEL", MODEL).into_bytes(),
    }
}

fn expand(text: &str) -> String {
    text.replace("@DEEP@", &"[".repeat(100_000))
        .replace("@LONG@", &"hi".repeat(4_000))
}

/// A command line as a shell would cut it: at spaces, but for what stands in single quotes.
fn split_args(line: &str) -> Vec<String> {
    let mut words = vec![None::<String>];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                words.last_mut().unwrap().get_or_insert_default();
            }
            ' ' if !quoted => words.push(None),
            _ => words.last_mut().unwrap().get_or_insert_default().push(c),
        }
    }
    let words = words.into_iter().flatten();
    words
        .map(|word| expand(&word).replace("MODEL", MODEL))
        .collect()
}

#[test]
fn there_are_many_of_them() {
    assert!(SETTINGS.len() + FACTS.len() + COMMANDS.len() >= 150);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    for (set, words) in SETTINGS {
        let line = "tune MODEL --learn a.tsv --out run --set";
        let command = [split_args(line), vec![(*set).to_owned()]].concat();
        refused(&[], &command, words);
    }
}

#[test]
fn facts_that_are_none_are_refused_with_file_and_line() {
    for (name, content, words) in FACTS {
        let line = format!("tune MODEL --learn {name} --out run --set data.audit=false");
        refused(&[(name, content)], &split_args(&line), words);
    }
}

#[test]
fn commands_that_cannot_be_carried_out_are_refused() {
    for (files, line, words) in COMMANDS {
        refused(files, &split_args(line), words);
    }
}
