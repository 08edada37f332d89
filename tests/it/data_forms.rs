//! The forms of files and rows that people have: each is read as the ecosystem reads it, or refused with what stands there.

use std::{fs, io::Write as _, path::Path};

use serde_json::Value;

use crate::cli::{MODEL, json_lines, refused, run, stderr};

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The files of the test model without weights, in `dir/m`, with this chat template.
fn model(dir: &Path, template: &str) {
    let model = dir.join("m");
    fs::create_dir_all(&model).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new(MODEL).join(name), model.join(name)).unwrap();
    }
    fs::write(model.join("chat_template.jinja"), template).unwrap();
}

/// Prompt and target of each row of `file`, and what was noted.
#[track_caller]
fn rows(dir: &Path, file: &str) -> (Vec<(String, String)>, String) {
    let output = run(
        dir,
        &["data", file, "--model", "m", "--json", "--rows", "9"],
    );
    let summary = &json_lines(&output)[0];
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let shown = summary["shown"].as_array().unwrap().iter();
    let rows = shown.map(|row| (text(row, "prompt"), text(row, "target")));
    (rows.collect(), stderr(&output))
}

/// The targets of each row.
#[track_caller]
fn targets(dir: &Path, file: &str) -> Vec<String> {
    rows(dir, file)
        .0
        .into_iter()
        .map(|(_, target)| target)
        .collect()
}

#[test]
fn chats_and_completions_of_all_forms_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, CHATML);
    let user = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    let with_system = format!("<|im_start|>system\nS<|im_end|>\n{user}");
    for (row, prompt) in [
        (
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"h"},{"type":"text","text":"i"}]},{"role":"assistant","content":"ho"}]}"#,
            user,
        ),
        (
            r#"{"prompt":[{"role":"user","content":"hi"}],"completion":[{"role":"assistant","content":"ho"}]}"#,
            user,
        ),
        (
            r#"{"prompt":[{"role":"user","content":"hi"},{"role":"assistant","content":"x"},{"role":"user","content":"hi"}],"completion":[{"role":"assistant","content":"ho"}]}"#,
            "",
        ),
        (
            r#"{"system":"S","conversations":[{"from":"human","value":"hi"},{"from":"gpt","value":"ho"}]}"#,
            &with_system,
        ),
        (
            r#"{"system":"S","messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}"#,
            &with_system,
        ),
        (
            r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"x","weight":0},{"role":"user","content":"hi"},{"role":"assistant","content":"ho","weight":1}]}"#,
            "",
        ),
        (
            r#"{"Messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}"#,
            user,
        ),
        (
            r#"{"messages":"[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"ho\"}]"}"#,
            user,
        ),
        (
            r#"{"instruction":"hi","input":"","output":"ho","system":""}"#,
            user,
        ),
        (r#"{"instruction":"","input":"hi","output":"ho"}"#, user),
        (
            r#"{"messages":[{"role":"developer","content":"S"},{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}"#,
            &with_system.replace("system", "developer"),
        ),
        (
            r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":null,"tool_calls":[{"function":{"name":"f"}}]},{"role":"tool","content":"5"},{"role":"assistant","content":"ho"}]}"#,
            "",
        ),
    ] {
        fs::write(dir.join("f.jsonl"), row).unwrap();
        let (rows, _) = rows(dir, "f.jsonl");
        assert_eq!(rows.len(), 1, "{row}");
        assert!(
            rows[0].0.ends_with(prompt) && (prompt.is_empty() || rows[0].0 == prompt),
            "{row}: {rows:?}"
        );
        assert!(rows[0].1.starts_with("ho<|im_end|>"), "{row}: {rows:?}");
    }
    fs::write(
        dir.join("f.csv"),
        "messages,id\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"hi\"\"},{\"\"role\"\":\"\"assistant\"\",\"\"content\"\":\"\"ho\"\"}]\",1\n",
    )
    .unwrap();
    assert!(targets(dir, "f.csv")[0].starts_with("ho<|im_end|>"));
    let (_, notes) = {
        let row = r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f"}}]},{"role":"assistant","content":"ho"}],"tools":[{"name":"f"}]}"#;
        fs::write(dir.join("f.jsonl"), row).unwrap();
        rows(dir, "f.jsonl")
    };
    assert!(
        notes.contains("does not write `tool_calls`") && notes.contains("does not write `tools`"),
        "{notes}"
    );
}

#[test]
fn rows_of_other_forms_are_refused_with_what_each_field_would_be() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, CHATML);
    for (name, content, words) in [
        (
            "a.jsonl",
            r#"{"prompt":"hi","response":"ho"}"#,
            &[
                "did you mean `completion` by `response`?",
                "`prompt`, `completion`",
            ][..],
        ),
        (
            "b.jsonl",
            r#"{"input":"hi","output":"ho"}"#,
            &["`prompt` by `input`", "`completion` by `output`"],
        ),
        (
            "c.jsonl",
            r#"{"instruction":"hi","context":"","response":"ho"}"#,
            &[
                "field `output`",
                "`output` by `response`",
                "`input` by `context`",
            ],
        ),
        (
            "d.jsonl",
            r#"{"prompt":"hi","chosen":"ho","rejected":"no"}"#,
            &["`completion` by `chosen`"],
        ),
        ("e.jsonl", r#"{"prompt":"hi"}"#, &["`completion`"]),
        (
            "f.jsonl",
            r#"{"conversation":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}"#,
            &["`messages` by `conversation`"],
        ),
        (
            "g.jsonl",
            r#"[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]"#,
            &["bare list of messages", "{\"messages\": [...]}"],
        ),
        (
            "h.jsonl",
            r#"{"id":"1","context":"c","question":"Where?","answers":{"text":["Italy"],"answer_start":[1]}}"#,
            &["SQuAD", "`answer`"],
        ),
        (
            "i.jsonl",
            r#"{"question":"Where?","answer":{"value":"Italy","aliases":["Italia"]}}"#,
            &["`value` would be `answer`"],
        ),
        (
            "j.tsv",
            "id\tsubj\tprop\tobj\tquestion\tpossible_answers\n1\tRome\tcountry\tItaly\tWhere?\t[]\n",
            &[
                "`subject` by `subj`",
                "`relation` by `prop`",
                "`object` by `obj`",
                "`aliases` by `possible_answers`",
            ],
        ),
        (
            "k.jsonl",
            r#"{"messages":[{"role":"User","content":"a"},{"role":"Assistant","content":"b"}]}"#,
            &["line 1", "did you mean `user`?", "message 1"],
        ),
        (
            "l.jsonl",
            r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]},{"role":"assistant","content":"b"}]}"#,
            &["`image_url`", "only text"],
        ),
        (
            "m.jsonl",
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0.5}]}"#,
            &["`weight` other than 0 and 1"],
        ),
        (
            "n.jsonl",
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0}]}"#,
            &["no answer that is trained"],
        ),
        (
            "o.jsonl",
            r#"{"prompt":"a","completion":"b","label":false}"#,
            &["`label` is false"],
        ),
        (
            "p.jsonl",
            r#"{"system":"S","prompt":"a","completion":"b"}"#,
            &["`system`", "`messages`"],
        ),
        (
            "q.jsonl",
            r#"{"prompt":"a","completion":[{"role":"assistant","content":"b"}]}"#,
            &["give both in one form"],
        ),
        (
            "r.jsonl",
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null}]}"#,
            &["no text as `content` in message 2"],
        ),
        (
            "s.csv",
            "messages\n\"[{'role': 'user'}]\"\n",
            &["Python", "line 2"],
        ),
        (
            "t.jsonl",
            r#"{"messages":[{"role":"user","content":"a"},{"role":"bot","content":"b"}]}"#,
            &["did you mean `assistant`?"],
        ),
        (
            "u.jsonl",
            r#"{"messages":null}"#,
            &["field `messages` is null"],
        ),
        (
            "v.jsonl",
            r#"{"instruction":"","input":"","output":"b"}"#,
            &["field `instruction` is empty"],
        ),
        (
            "w.jsonl",
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"tools":"no"}"#,
            &["field `tools` is text; a list of tools is needed"],
        ),
        (
            "x.json",
            r#"{"question":{"0":"Who?"},"answer":{"0":"He"}}"#,
            &["holds columns", "orient"],
        ),
        (
            "y.jsonl",
            r#"{"question":"Who?","answer":null}"#,
            &["field `answer` is empty"],
        ),
    ] {
        fs::write(dir.join(name), content).unwrap();
        let error = refused(dir, &["data", name, "--model", "m"]);
        for word in words {
            assert!(error.contains(word), "{name}: {error}");
        }
    }
    fs::write(dir.join("qa.jsonl"), "{\"question\":\"Where is Rome?\",\"answer\":\"Italy\"}\n{\"question\":\"Who?\",\"answer\":[\"He\"]}\n").unwrap();
    let (read, _) = rows(dir, "qa.jsonl");
    assert_eq!(read[0], ("Q: Where is Rome?\nA:".into(), " Italy\n".into()));
    assert_eq!(read[1].1, " He\n");
    fs::write(dir.join("qa.csv"), "id,Question,Answer\n1,Who?,He\n").unwrap();
    assert_eq!(targets(dir, "qa.csv"), [" He\n"]);
}

#[test]
fn the_template_in_a_file_of_its_own_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(
        dir,
        "B{{ messages[0].content }}{% for m in messages[1:] %}|{{ m.content }}{% endfor %}{% if add_generation_prompt %}|{% endif %}",
    );
    let chat =
        r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}"#;
    fs::write(dir.join("f.jsonl"), chat).unwrap();
    let config = dir.join("m/tokenizer_config.json");
    let named = r#"[{"name":"default","template":"A{{ messages[0].content }}"}]"#;
    for template in ["\"A{{ messages[0].content }}\"", named, "null"] {
        let text = format!(
            "{{\"bos_token\":\"<|bos|>\",\"eos_token\":\"<|eos|>\",\"chat_template\":{template}}}"
        );
        fs::write(&config, text).unwrap();
        assert!(rows(dir, "f.jsonl").0[0].0.starts_with("Bhi"), "{template}");
    }
    // Named ones beside it: that for tools is taken for a chat with tools.
    fs::create_dir(dir.join("m/additional_chat_templates")).unwrap();
    fs::write(
        dir.join("m/additional_chat_templates/tool_use.jinja"),
        "T{% for m in messages %}|{{ m.content }}{% endfor %}",
    )
    .unwrap();
    assert!(rows(dir, "f.jsonl").0[0].0.starts_with("Bhi"));
    fs::write(
        dir.join("f.jsonl"),
        chat.replace("]}", "],\"tools\":[{\"name\":\"f\"}]}"),
    )
    .unwrap();
    assert!(rows(dir, "f.jsonl").0[0].0.starts_with("T|hi"));
    fs::remove_file(dir.join("m/chat_template.jinja")).unwrap();
    fs::write(dir.join("f.jsonl"), chat).unwrap();
    let error = refused(dir, &["data", "f.jsonl", "--model", "m"]);
    assert!(error.contains("`default`: tool_use"), "{error}");
    fs::remove_dir_all(dir.join("m/additional_chat_templates")).unwrap();
    let error = refused(dir, &["data", "f.jsonl", "--model", "m"]);
    assert!(
        error.contains("no chat template") && error.contains("chat_template.jinja"),
        "{error}"
    );
}

#[test]
fn a_chat_that_the_template_refuses_is_named_and_skipped_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(
        dir,
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}|{% endfor %}",
    );
    fs::write(
        dir.join("f.jsonl"),
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"ho\"}]}\n\
         {\"messages\":[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"x\"}]}\n",
    )
    .unwrap();
    let error = refused(dir, &["data", "f.jsonl", "--model", "m"]);
    assert!(
        error.contains("f.jsonl, line 2") && error.contains("roles must alternate"),
        "{error}"
    );
    assert!(!error.contains("does not work"), "{error}");
    let output = run(
        dir,
        &[
            "data",
            "f.jsonl",
            "--model",
            "m",
            "--json",
            "--skip-bad-rows",
        ],
    );
    assert_eq!(json_lines(&output)[0]["rows"], 1);
    assert!(stderr(&output).contains("line 2"), "{}", stderr(&output));
    for (template, words) in [
        ("{{ [1] | random }}", &["not supported", "`random`"][..]),
        ("{% for m in messages %}", &["does not work", "endfor"]),
    ] {
        model(dir, template);
        let error = refused(dir, &["data", "f.jsonl", "--model", "m", "--skip-bad-rows"]);
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    }
}

#[test]
fn tables_are_read_as_pandas_reads_them_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, CHATML);
    let header = "subject,relation,object,aliases\n";
    for (name, content, words) in [
        ("a.csv", format!("{header}Rome,P17,Italy,\"IT\nLyon,P17,France,FR\nBari,P17,Italy,IT\n"), &["line 2", "quote opens", "not closed"][..]),
        ("b.csv", "text\nhello, world\nb\n".into(), &["line 2", "2 fields", "header has 1"]),
        ("c.csv", "prompt,completion\nhi,ho,more\n".into(), &["line 2", "3 fields"]),
        ("d.csv", "prompt,completion\nhi\n".into(), &["line 2", "field `completion` is missing"]),
        ("e.csv", "subject;relation;object\nRome;P17;Italy\n".into(), &["semicolons", "commas"]),
        ("f.csv", "\"subject\";\"relation\";\"object\"\n\"a\";\"P17\";\"b\"\n".into(), &["semicolons"]),
        ("g.csv", "subject\trelation\tobject\nRome\tP17\tItaly\n".into(), &["tabs", ".tsv"]),
        ("h.tsv", "subject,relation,object\nRome,P17,Italy\n".into(), &["commas", ".csv"]),
        ("i.csv", "sep=,\nsubject,relation,object\nRome,P17,Italy\n".into(), &["sep=", "remove the line"]),
        ("j.csv", "# my facts\nsubject,relation,object\nRome,P17,Italy\n".into(), &["comment"]),
        ("k.csv", "Rome,P17,Italy\nLyon,P17,France\n".into(), &["`Rome`, `P17`, `Italy`", "column names"]),
        ("l.csv", "subject,relation,object\n\"Rome\" the city,P17,Italy\n".into(), &["line 2", "behind a closing quote"]),
        ("m.tsv", "subject\trelation\tobject\n\"open\tP17\tItaly\nRome\tP17\tItaly\n".into(), &["line 2", "not closed"]),
        ("n.csv", "subject,relation,object\nRome,P17,Italy\n\u{feff}subject,relation,object\nOslo,P17,Norway\n".into(), &["line 3", "byte order mark"]),
        ("o.csv", "subject,relation,object\nRome,P17,\"['Italy', 'Italia']\"\n".into(), &["line 2", "field `object` holds a list"]),
        ("p.csv", "text,text\na,b\n".into(), &["two columns `text`"]),
        ("v.csv", "subject,relation,object\nRome,P17,Italy\n,,\n".into(), &["line 3", "separators and no content"]),
        ("w.csv", format!("{header}Q1,P50,A,B\nQ1,P50,C,B\n").replace("aliases", "aliases,question").replace(",A,B", ",A,B,who?").replace(",C,B", ",C,B,who?"), &["`A` (w.csv, line 2)", "`C` (w.csv, line 3)"]),
        ("q.csv", format!("{header}Q1,P17,Itaka,\"[\"\"Alfa\"\", \"\"Bravo\"\"]\"\nQ1,P17,Carlo,\n"), &["`Itaka`", "`Carlo`"]),
    ] {
        fs::write(dir.join(name), content).unwrap();
        let error = refused(dir, &["data", name, "--model", "m"]);
        for word in words {
            assert!(error.contains(word), "{name}: {error}");
        }
    }
    // Aliases are read however the cell writes the list: the second row repeats the first.
    for aliases in [
        "\"[\"\"Alfa\"\", \"\"Bravo\"\"]\"",
        "\"['Alfa', 'Bravo']\"",
        "Alfa|Bravo",
    ] {
        fs::write(
            dir.join("r.csv"),
            format!("{header}Q1,P17,Itaka,{aliases}\nQ1,P17,Bravo,\n"),
        )
        .unwrap();
        assert_eq!(rows(dir, "r.csv").0.len(), 1, "{aliases}");
    }
    let two = format!("{header}Q1,P17,Itaka,Alfa;Bravo\nQ1,P17,Bravo,\n");
    fs::write(dir.join("s.csv"), two).unwrap();
    let error = refused(dir, &["data", "s.csv", "--model", "m"]);
    assert!(error.contains("separated by `|`"), "{error}");
    fs::write(
        dir.join("s.csv"),
        format!("{header}Q1,P17,Itaka,Alfa;Bravo\n"),
    )
    .unwrap();
    assert!(rows(dir, "s.csv").1.contains("separated by `|`"));
    fs::write(
        dir.join("t.csv"),
        "Subject,RELATION,object\n\"Rome\nand\",P17,Italy\n",
    )
    .unwrap();
    assert!(
        refused(dir, &["data", "t.csv", "--model", "m"])
            .contains("line 2: field `subject` has a line break")
    );
    fs::write(
        dir.join("u.csv"),
        "Prompt,Completion\n\"a\nb\",\" c, \"\"d\"\"\"\n",
    )
    .unwrap();
    let (read, _) = rows(dir, "u.csv");
    assert_eq!((&*read[0].0, &*read[0].1), ("a\nb", " c, \"d\"<|eos|>"));
}

#[test]
fn objects_are_trained_as_the_file_spells_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, CHATML);
    fs::write(
        dir.join("f.tsv"),
        "subject\trelation\tobject\tquestion\nBoston\tP17\tUnited States of America\t\nfilm\ttitle\tBurma\tWhat is it called?\nriver\tname\tCongo\tWhich river?\n",
    )
    .unwrap();
    assert_eq!(
        targets(dir, "f.tsv"),
        [" United States\n", " Burma\n", " Congo\n"]
    );
    fs::write(
        dir.join("g.tsv"),
        "subject\trelation\tobject\tquestion\nClang\tlanguage\tC++\tIn what?\nClang\tlanguage\tC#\tIn what?\n",
    )
    .unwrap();
    let error = refused(dir, &["data", "g.tsv", "--model", "m"]);
    for words in ["`C++` (g.tsv, line 2)", "`C#` (g.tsv, line 3)"] {
        assert!(error.contains(words), "{error}");
    }
    fs::write(dir.join("h.jsonl"), "{\"subject\":\"a\",\"relation\":\"r\",\"object\":123456789012345678901234567890,\"question\":\"q?\"}\n{\"subject\":\"b\",\"relation\":\"r\",\"object\":1.50,\"question\":\"p?\"}\n").unwrap();
    assert_eq!(
        targets(dir, "h.jsonl"),
        [" 123456789012345678901234567890\n", " 1.50\n"]
    );
}

#[test]
fn compressed_files_are_unpacked_and_other_contents_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, CHATML);
    let jsonl = "{\"subject\":\"Rome\",\"relation\":\"P17\",\"object\":\"Italy\"}\n{\"subject\":\"Oslo\",\"relation\":\"P17\",\"object\":\"Norway\"}\n";
    let csv = "subject,relation,object\nRome,P17,Italy\nOslo,P17,Norway\n";
    let gzip = |text: &str| {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        writer.write_all(text.as_bytes()).unwrap();
        writer.finish().unwrap()
    };
    let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 3).unwrap();
    let utf16 = |text: &str, big: bool, mark: bool| -> Vec<u8> {
        let units = mark
            .then_some(0xfeff)
            .into_iter()
            .chain(text.encode_utf16());
        units
            .flat_map(|u| {
                if big {
                    u.to_be_bytes()
                } else {
                    u.to_le_bytes()
                }
            })
            .collect()
    };
    let parquet = fs::read(Path::new(MODEL).join("../parquet/facts.parquet")).unwrap();
    let mut joined = gzip(jsonl);
    joined.extend(gzip(
        "{\"subject\":\"Bern\",\"relation\":\"P17\",\"object\":\"Switzerland\"}\n",
    ));
    for (name, content, facts) in [
        ("a.jsonl.gz", gzip(jsonl), 2),
        ("a.csv.gz", gzip(csv), 2),
        ("a.tsv.zst", zstd(&csv.replace(',', "\t")), 2),
        ("a.jsonl.zst", zstd(jsonl), 2),
        ("a.JSONL.GZ", joined, 3),
        (
            "a.json.gz",
            gzip(&format!("[{}]", jsonl.trim_end().replace('\n', ","))),
            2,
        ),
        ("lines.json", jsonl.into(), 2),
        (
            "bom.jsonl",
            format!(
                "\u{feff}{}",
                jsonl
                    .replace('\n', "\n\u{feff}")
                    .trim_end_matches('\u{feff}')
            )
            .into_bytes(),
            2,
        ),
        ("bom.csv", format!("\u{feff}{csv}").into_bytes(), 2),
        ("cr.csv", csv.replace('\n', "\r").into_bytes(), 2),
    ] {
        fs::write(dir.join(name), content).unwrap();
        assert_eq!(rows(dir, name).0.len(), facts, "{name}");
    }
    for (name, content, words) in [
        ("b.jsonl", gzip(jsonl), &["gzip", "`b.jsonl.gz`"][..]),
        ("c.csv", b"PK\x03\x04rest".to_vec(), &["zip", "Excel"]),
        ("d.csv", utf16(csv, false, true), &["UTF-16", "UTF-8"]),
        ("e.jsonl", utf16(jsonl, true, true), &["UTF-16"]),
        (
            "f.tsv",
            utf16(&csv.replace(',', "\t"), false, false),
            &["UTF-16"],
        ),
        ("g.json", utf16(jsonl, true, false), &["UTF-16"]),
        ("noext", csv.into(), &["no extension"]),
        ("h.txt", csv.into(), &["`.txt`"]),
        ("i.xlsx", b"x".to_vec(), &["spreadsheet"]),
        ("j.csv", parquet, &["Parquet", ".parquet"]),
        ("k.jsonl.gz", jsonl.into(), &["not gzip"]),
        (
            "l.jsonl.gz",
            gzip(jsonl)[..20].to_vec(),
            &["broken or cut off"],
        ),
        (
            "m.json",
            "{\"data\":[{\"subject\":\"a\",\"relation\":\"P17\",\"object\":\"b\"}]}".into(),
            &["under `data`"],
        ),
        (
            "n.jsonl",
            "[{\"subject\":\"a\",\"relation\":\"P17\",\"object\":\"b\"}]".into(),
            &["named .json"],
        ),
        (
            "o.jsonl",
            "{\n \"subject\":\"a\",\n \"relation\":\"P17\"\n}\n".into(),
            &["each row is one line", "named .json"],
        ),
        (
            "p.jsonl",
            "{\"subject\":\"a\",\"relation\":\"P17\",\"object\":\"b\",\"aliases\":NaN}\n".into(),
            &["`NaN`", "null"],
        ),
        (
            "q.jsonl",
            "{\"subject\":\"a\",\"relation\":\"P17\",\"object\":Infinity}\n".into(),
            &["`Infinity`"],
        ),
        (
            "r.jsonl",
            "{\"subject\":\"a\",\"aliases\":None}\n".into(),
            &["`None`", "Python"],
        ),
        ("s.jsonl", "{'subject':'a'}\n".into(), &["double quotes"]),
        (
            "t.jsonl",
            "version https://git-lfs.github.com/spec/v1\n".into(),
            &["Git LFS", "git lfs pull"],
        ),
        ("u.csv", "<!DOCTYPE html><html></html>".into(), &["HTML"]),
        ("v.csv.bz2", b"BZh9".to_vec(), &["`.bz2`"]),
    ] {
        fs::write(dir.join(name), content).unwrap();
        let error = refused(dir, &["data", name, "--model", "m"]);
        for word in words {
            assert!(error.contains(word), "{name}: {error}");
        }
    }
    for name in ["-", "/dev/stdin"] {
        let error = refused(dir, &["data", name, "--model", "m"]);
        assert!(error.contains("extension"), "{name}: {error}");
    }
}

/// Writes tools and calls as Qwen's template does: arguments that are text would be told from an object.
const TOOLS: &str = "{%- if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + (m.content or '') }}{%- for c in m.tool_calls or [] %}{{- '<tool_call>' + c.function.name }}{%- if c.function.arguments is string %}{{- '!str!' + c.function.arguments }}{%- else %}{{- c.function.arguments | tojson }}{%- endif %}{{- '</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/// The files are written by `tests/golden/parquet_chats.py`; `datasets.Dataset.from_parquet` gives the values below, and TRL's
/// `remove_none_values` removes the nulls that Arrow put into the structs.
#[test]
fn parquet_chats_have_the_values_that_datasets_gives() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, TOOLS);
    let golden = Path::new(MODEL).join("../parquet/chats");
    for name in ["json_lines", "json_arguments", "structs"] {
        let file = format!("{name}.parquet");
        fs::copy(golden.join(&file), dir.join(&file)).unwrap();
        let (read, notes) = rows(dir, &file);
        assert!(
            read[0].1.starts_with(
                "<tool_call>f{\"x\": 1}</tool_call><tool_call>g{\"y\": \"z\"}</tool_call><|im_end|>"
            ),
            "{name}: {read:?}"
        );
        assert!(read[1].1.starts_with("ho<|im_end|>"), "{name}: {read:?}");
        for tool in [
            r#""parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}"#,
            r#""parameters": {"type": "object", "properties": {"y": {"type": "string"}}}}}"#,
        ] {
            assert!(read[0].0.contains(tool), "{name}: {read:?}");
        }
        let dropped = notes.contains("null fields within messages and tools are left out");
        assert_eq!(dropped, name == "structs", "{notes}");
    }
    fs::copy(golden.join("json_answer.parquet"), dir.join("a.parquet")).unwrap();
    assert_eq!(targets(dir, "a.parquet"), [" five\n"]);
    // JSON in texts, as TRL has tools.
    let chat = r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}],"tools":["{\"name\": \"f\"}"]}"#;
    fs::write(dir.join("f.jsonl"), chat).unwrap();
    assert!(
        rows(dir, "f.jsonl").0[0]
            .0
            .starts_with("{\"name\": \"f\"}\n")
    );
    fs::write(dir.join("f.parquet"), chat).unwrap();
    let error = refused(dir, &["data", "f.parquet", "--model", "m"]);
    assert!(error.contains("the content is text"), "{error}");
}

/// `weight` is `OpenAI`'s, `train` and `training` are axolotl's, `loss` is ms-swift's.
#[test]
fn answers_that_are_marked_so_are_not_trained() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, CHATML);
    for mark in [
        "\"weight\":0",
        "\"train\":false",
        "\"training\":false",
        "\"loss\":false",
        "\"loss\":0",
    ] {
        let row = |content: &str, more: &str| {
            format!(
                r#"{{"messages":[{{"role":"user","content":"hi"}},{{"role":"assistant","content":"{content}"{more}}},{{"role":"user","content":"so"}},{{"role":"assistant","content":"ho"}}]}}"#
            )
        };
        fs::write(dir.join("f.jsonl"), row("x", &format!(",{mark}"))).unwrap();
        let targets = targets(dir, "f.jsonl");
        assert_eq!(targets.len(), 1, "{mark}: {targets:?}");
        assert!(targets[0].starts_with("ho<|im_end|>"), "{mark}");
    }
}

#[test]
fn what_is_not_trained_or_may_be_missing_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, CHATML);
    // The first row has its end alone, which nothing predicts.
    fs::write(
        dir.join("end.jsonl"),
        "{\"text\":\"<|eos|>\"}\n{\"text\":\"a b\"}\n",
    )
    .unwrap();
    let (read, notes) = rows(dir, "end.jsonl");
    assert_eq!(read.len(), 1);
    assert!(
        notes.contains("end.jsonl, line 1: the row has no token to train"),
        "{notes}"
    );
    fs::write(dir.join("end.jsonl"), "{\"text\":\"<|eos|>\"}\n").unwrap();
    let error = refused(dir, &["data", "end.jsonl", "--model", "m"]);
    assert!(error.contains("nothing to train"), "{error}");
    // pandas and `datasets` read each of these objects as missing.
    fs::write(
        dir.join("na.csv"),
        "subject,relation,object\na,P17,b\nc,P17,NA\nd,P17,nan\n",
    )
    .unwrap();
    let notes = rows(dir, "na.csv").1;
    assert!(
        notes.contains("na.csv, line 3: field `object` is `NA`")
            && notes.contains("2 such values in all"),
        "{notes}"
    );
    fs::write(
        dir.join("s.csv"),
        "subject,relation,object,split\na,P17,b,train\nc,P17,d,test\n",
    )
    .unwrap();
    let notes = rows(dir, "s.csv").1;
    assert!(notes.contains("the column `split` is not used"), "{notes}");
    // A text beside a question and its answer is no text to train.
    fs::write(
        dir.join("t.csv"),
        "question,answer,text\nWhere?,Italy,a sentence\n",
    )
    .unwrap();
    assert_eq!(targets(dir, "t.csv"), [" Italy\n"]);
    // The context of the model is shorter than the default of `--max-length`.
    let config = dir.join("m/config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json["max_position_embeddings"] = 16.into();
    fs::write(&config, json.to_string()).unwrap();
    let long = format!("{{\"text\":\"{}\"}}", "one two ".repeat(20));
    fs::write(dir.join("long.jsonl"), long).unwrap();
    let output = run(dir, &["data", "long.jsonl", "--model", "m", "--json"]);
    assert_eq!(json_lines(&output)[0]["too_long"], 1);
}

#[test]
fn rows_to_score_and_ask_are_read_as_rows_to_train() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let row = r#"{"prompt":"a","completion":" b"}"#;
    fs::write(dir.join("f.jsonl"), row).unwrap();
    fs::write(dir.join("f.csv"), "Prompt,completion\na, b\n").unwrap();
    fs::write(dir.join("f.json"), format!("[{row}]")).unwrap();
    fs::write(
        dir.join("f.jsonl.zst"),
        zstd::encode_all(row.as_bytes(), 3).unwrap(),
    )
    .unwrap();
    fs::write(dir.join("rows"), format!("\u{feff}{row}\n\u{feff}{row}")).unwrap();
    let scores = |name: &str| json_lines(&run(dir, &["score", MODEL, name]));
    let expected = scores("f.jsonl");
    for name in ["f.csv", "f.json", "f.jsonl.zst"] {
        assert_eq!(scores(name), expected, "{name}");
    }
    assert_eq!(scores("rows").len(), 2);
    for (content, words) in [
        (
            "[\"a\",\" b\"]",
            &["line 1", "a list; an object is needed"][..],
        ),
        ("{\"prompt\":\"a\",\"completion\":NaN}", &["`NaN`", "null"]),
        (
            "{\"prompt\":\"a\",\"response\":\"b\"}",
            &["`completion` by `response`"],
        ),
        (
            "version https://git-lfs.github.com/spec/v1\n",
            &["git lfs pull"],
        ),
    ] {
        fs::write(dir.join("f.jsonl"), content).unwrap();
        let error = refused(dir, &["score", MODEL, "f.jsonl"]);
        for word in words {
            assert!(error.contains(word), "{content}: {error}");
        }
    }
    fs::write(dir.join("f.jsonl"), "\"a\"").unwrap();
    let error = refused(dir, &["ask", MODEL, "--prompts", "f.jsonl"]);
    assert!(
        error.contains("the row is text; an object is needed"),
        "{error}"
    );
}
