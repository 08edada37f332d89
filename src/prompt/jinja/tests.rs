//! Comparison with `jinja2`, on recorded and on generated templates.

use std::{env, fs, process::Command};

use rand::{Rng as _, SeedableRng, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value as Json, json};

use super::{FaultKind, Template, Value};

fn rendered(source: &str, variables: &Map<String, Json>) -> Result<String, (FaultKind, String)> {
    let fault = |fault: super::Fault| (fault.kind, fault.message);
    let template = Template::parse(source).map_err(fault)?;
    let variables = variables
        .iter()
        .map(|(name, value)| (&**name, value.into()));
    let rendered = template.render(variables.collect()).map_err(fault)?;
    Ok(rendered.text)
}

/// Renderings by `transformers` from `tests/golden/chat_templates.py`.
#[test]
fn every_part_of_jinja_and_python_is_rendered_as_by_transformers() {
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/chat/expressions.json"
    );
    let golden: Json = serde_json::from_str(&fs::read_to_string(golden).unwrap()).unwrap();
    let mut variables = golden["variables"].as_object().unwrap().clone();
    for message in variables["messages"].as_array_mut().unwrap() {
        message
            .as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
    }
    let cases = golden["cases"].as_array().unwrap();
    let mut wrong = Vec::new();
    for case in cases {
        let template = case["template"].as_str().unwrap();
        let ours = rendered(template, &variables);
        if ours.as_deref().ok() != case["rendered"].as_str() {
            wrong.push(format!("{template:?}: {ours:?}, not {}", case["rendered"]));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    assert!(cases.len() > 300);
}

/// By `jinja2` 3.1.6.
#[test]
fn the_default_of_groupby_names_its_group() {
    let source = "{% for key, items in [{'x': 'a'}, {}] | groupby('x', default='N') %}{{ key }}{{ items | length }} {% endfor %}";
    assert_eq!(rendered(source, &Map::new()).unwrap(), "a1 N1 ");
}

#[test]
fn faults_say_what_and_where() {
    for (source, kind, line, words) in [
        (
            "a\n{{ '\\N{BULLET}' }}",
            FaultKind::NotOffered,
            2,
            "by its name",
        ),
        (
            "{{ {'b': 1, 'a': 2} | pprint }}",
            FaultKind::NotOffered,
            1,
            "`pprint`",
        ),
        (
            "a\n{{ 'x' + none }}",
            FaultKind::Value,
            2,
            "can only concatenate str",
        ),
        ("{{ nope.x }}", FaultKind::Value, 1, "'nope' is undefined"),
        (
            "\n\n{{ raise_exception('no tools') }}",
            FaultKind::Raised,
            3,
            "no tools",
        ),
        ("{% for %}", FaultKind::Syntax, 1, "name to assign to"),
        ("{% if a %}\nx", FaultKind::Syntax, 2, "endif"),
        ("{{ 1", FaultKind::Syntax, 1, "no `}}`"),
        ("{% include 'x' %}", FaultKind::NotOffered, 1, "`include`"),
        ("{{ [1] | random }}", FaultKind::NotOffered, 1, "`random`"),
        (
            "{{ 'a' | nope }}",
            FaultKind::Syntax,
            1,
            "No filter named 'nope'",
        ),
        ("{{ [].append(1) }}", FaultKind::Value, 1, "unsafe"),
        ("{{ range(1000000) }}", FaultKind::TooLarge, 1, "range"),
        ("{{ 'x' * 999999999 }}", FaultKind::TooLarge, 1, "too long"),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            FaultKind::TooLarge,
            1,
            "nested",
        ),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            FaultKind::TooLarge,
            1,
            "too lo",
        ),
    ] {
        let fault = Template::parse(source).map_or_else(Err, |t| t.render(vec![]).map(|r| r.text));
        let fault = fault.unwrap_err();
        assert_eq!(
            (fault.kind, fault.line),
            (kind, line),
            "{source}: {}",
            fault.message
        );
        assert!(fault.message.contains(words), "{source}: {}", fault.message);
    }
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(Template::parse(&deep).is_err());
}

#[test]
fn generation_marks_are_where_the_text_is() {
    let source =
        "{% for m in ['ä', 'b'] %}<{% generation %}{{ m }}!{% endgeneration %}>\n{% endfor %}";
    let rendered = Template::parse(source).unwrap().render(vec![]).unwrap();
    let marked = rendered
        .generations
        .iter()
        .map(|range| &rendered.text[range.clone()]);
    assert_eq!(marked.collect::<Vec<_>>(), ["ä!", "b!"]);
}

#[test]
fn a_value_is_shown_as_python_shows_it() {
    let value = Value::from(&json!({"a": [1, 2.0, null, true, "x'y"]}));
    assert_eq!(value.repr(), "{'a': [1, 2.0, None, True, \"x'y\"]}");
}

/// Variables of generated templates.
fn variables() -> Json {
    json!({
        "messages": [
            {"role": "system", "content": "Be kind.\n"},
            {"role": "user", "content": " it's <b> \"é\" 🎈 ", "n": 1},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nOne, two.", "calls": [{"name": "f", "args": {"b": 1, "a": [true, null]}}]},
        ],
        "s": "Hello, wOrld a-b", "e": "", "n": 3, "z": 0, "x": -2.5, "flag": true, "nothing": null,
        "items": [3, 1, 2], "words": ["b", "A", "c d"], "d": {"b": 1, "a": "two", "Z": [1.0]},
    })
}

/// Writes templates at random.
struct Generator {
    rng: ChaCha8Rng,
}

impl Generator {
    fn pick<'t>(&mut self, from: &[&'t str]) -> &'t str {
        from.choose(&mut self.rng).expect("there are some")
    }

    fn expression(&mut self, depth: usize) -> String {
        if depth == 0 || self.rng.random_bool(0.25) {
            return self
                .pick(&[
                    "s",
                    "e",
                    "n",
                    "z",
                    "x",
                    "flag",
                    "nothing",
                    "items",
                    "words",
                    "d",
                    "missing",
                    "'a'",
                    "'x y\\n'",
                    "\"it's\"",
                    "1",
                    "0",
                    "2.5",
                    "1e20",
                    "true",
                    "none",
                    "false",
                    "[1, 'a', none]",
                    "{'k': 1.0, 'b': [true]}",
                    "(1, 'b')",
                    "messages",
                    "messages[0]",
                    "messages[-1].content",
                    "messages[1]['role']",
                    "d.a",
                    "items[0]",
                    "words[1:]",
                ])
                .to_owned();
        }
        let a = self.expression(depth - 1);
        match self.rng.random_range(0..10) {
            0 | 1 => {
                let op = self.pick(&["+", "-", "*", "//", "/", "%", "~", "~", "+"]);
                format!("({a}) {op} ({})", self.expression(depth - 1))
            }
            2 => {
                let op = self.pick(&["==", "!=", "<", ">=", "in", "not in"]);
                format!("({a}) {op} ({})", self.expression(depth - 1))
            }
            3 => {
                let op = self.pick(&["and", "or"]);
                format!("({a}) {op} ({})", self.expression(depth - 1))
            }
            4 => {
                let other = self.expression(depth - 1);
                format!(
                    "(({a}) if {} else ({other}))",
                    self.pick(&["flag", "z", "s", "missing"])
                )
            }
            5 => {
                let method = self.pick(&[
                    "strip()",
                    "lower()",
                    "upper()",
                    "title()",
                    "capitalize()",
                    "split(' ')",
                    "split()",
                    "split('o', 1)",
                    "rsplit('-', 1)",
                    "startswith('H')",
                    "endswith('b')",
                    "replace('l', 'L')",
                    "find('o')",
                    "count('l')",
                    "lstrip('<H')",
                    "rstrip('.\\n')",
                    "splitlines()",
                    "partition('o')",
                    "isdigit()",
                    "zfill(4)",
                    "center(9)",
                    "swapcase()",
                    "join(words)",
                    "format(1)",
                ]);
                format!("({a})|string|trim|string if missing else ({a}|string).{method}")
            }
            6 | 7 => {
                let filter = self.pick(&[
                    "tojson",
                    "tojson(indent=2)",
                    "tojson(ensure_ascii=true)",
                    "tojson(separators=(',', ':'))",
                    "tojson(sort_keys=true)",
                    "string",
                    "length",
                    "trim",
                    "upper",
                    "title",
                    "capitalize",
                    "default('z')",
                    "default('z', true)",
                    "list",
                    "first",
                    "last",
                    "join(', ')",
                    "sort",
                    "sort(reverse=true)",
                    "reverse|list",
                    "unique|list",
                    "int",
                    "float",
                    "abs",
                    "round",
                    "round(1)",
                    "map('string')|list",
                    "select|list",
                    "select('string')|list",
                    "map('upper')|join('.')",
                    "max",
                    "min",
                    "sum",
                    "wordcount",
                    "replace('a', 'q')",
                    "indent",
                    "indent(2, true)",
                    "e",
                    "truncate(7)",
                    "batch(2)|list",
                    "dictsort",
                    "items|list",
                    "urlencode",
                    "selectattr('n')|list|length",
                    "map(attribute='role')|list",
                    "groupby('role')|list|length",
                    "slice(2)|list",
                ]);
                format!("({a})|{filter}")
            }
            8 => {
                let test = self.pick(&[
                    "defined",
                    "none",
                    "string",
                    "number",
                    "mapping",
                    "sequence",
                    "iterable",
                    "odd",
                    "true",
                    "boolean",
                    "integer",
                    "lower",
                    "divisibleby(2)",
                    "eq(1)",
                    "in([1, 'a'])",
                    "sameas(none)",
                    "callable",
                    "float",
                ]);
                let not = self.pick(&["", "not "]);
                format!("(({a}) is {not}{test})")
            }
            _ => {
                let subscript = self.pick(&[
                    "[0]",
                    "[-1]",
                    "[1:]",
                    "[::-1]",
                    "['a']",
                    ".b",
                    ".role",
                    "[:2]",
                    ".content",
                    ".get('b')",
                    ".items()|list",
                ]);
                format!("({a}){subscript}")
            }
        }
    }

    fn body(&mut self, depth: usize) -> String {
        let parts = self.rng.random_range(1..4);
        (0..parts).map(|_| self.statement(depth)).collect()
    }

    fn statement(&mut self, depth: usize) -> String {
        let open = self.pick(&["{%", "{%", "{%-", "{%+"]);
        let close = self.pick(&["%}", "%}", "-%}", "+%}"]);
        let choice = if depth == 0 {
            self.rng.random_range(0..3)
        } else {
            self.rng.random_range(0..9)
        };
        match choice {
            0 => self
                .pick(&["text ", "\n", "  \n  x", "a\n\n", " ", "{# c #}\n", "\t"])
                .to_owned(),
            1 | 2 => {
                let (open, close) = (
                    self.pick(&["{{", "{{", "{{-"]),
                    self.pick(&["}}", "}}", "-}}"]),
                );
                format!("{open} {} {close}", self.expression(3))
            }
            3 => format!(
                "{open} if {} {close}{}{open} else {close}{}{open} endif {close}",
                self.expression(1),
                self.body(depth - 1),
                self.body(depth - 1)
            ),
            4 | 5 => {
                let over = self.pick(&[
                    "items",
                    "words",
                    "messages",
                    "d",
                    "d.items()",
                    "range(3)",
                    "s",
                    "missing",
                    "messages[1:]",
                    "items if loop is not defined",
                ]);
                let inside = self.pick(&[
                    "{{ loop.index }}",
                    "{{ i }}",
                    "{{ loop.last }}{{ i }}",
                    "{% if loop.first %}{% continue %}{% endif %}{{ i }}",
                    "{{ i.role }}",
                    "{% set n = n + 1 %}{{ n }}",
                    "{% if loop.index0 == 1 %}{% break %}{% endif %}",
                    "{{ loop.length }}{{ loop.revindex0 }}",
                ]);
                format!(
                    "{open} for i in {over} {close}{inside}{}{open} else {close}none{open} endfor {close}",
                    self.body(depth - 1)
                )
            }
            // Not a variable of the context: one that is read within a block, and set behind it, `jinja2` takes for undefined.
            6 => format!(
                "{open} set fresh = {} {close}{{{{ fresh }}}}",
                self.expression(2)
            ),
            7 => format!(
                "{open} set ns = namespace(v={}) {close}{open} for i in items {close}{open} set ns.v = i {close}{open} endfor {close}{{{{ ns.v }}}}",
                self.expression(1)
            ),
            _ => {
                let inner = self.body(depth - 1);
                let around = self.pick(&[
                    "set q|endset {%}{{ q }}",
                    "filter upper|endfilter {%}",
                    "generation|endgeneration {%}",
                    "macro m(a='d')|endmacro {%}{{ m(1) }}",
                ]);
                let (begin, end) = around.split_once('|').expect("two parts");
                let end = end.replace("{%}", close);
                format!("{open} {begin} {close}{inner}{open} {end}")
            }
        }
    }
}

/// `UNFORGET_TOOLS_PYTHON`, or a Python 3 that has `jinja2`; `None`, told, where there is neither.
fn python() -> Option<String> {
    let python = env::var("UNFORGET_TOOLS_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_jinja = Command::new(&python).args(["-c", "import jinja2"]).output();
    if has_jinja.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(
        env::var_os("CI").is_none(),
        "no Python with jinja2 was found"
    );
    eprintln!("skipped: no Python with jinja2 was found");
    None
}

#[test]
fn generated_templates_are_rendered_as_by_jinja2() {
    let Some(python) = python() else { return };
    let seed = env::var("UNFORGET_FUZZ_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let mut generator = Generator {
        rng: ChaCha8Rng::seed_from_u64(seed),
    };
    let templates: Vec<String> = (0..3000).map(|_| generator.body(2)).collect();
    let dir = tempfile::tempdir().unwrap();
    let cases = dir.path().join("cases.json");
    let variables = variables();
    fs::write(
        &cases,
        json!({"variables": variables, "templates": templates}).to_string(),
    )
    .unwrap();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/render_templates.py"
    );
    let output = Command::new(python)
        .arg(script)
        .arg(&cases)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let theirs: Vec<Option<String>> = serde_json::from_slice(&output.stdout).unwrap();
    let variables = variables.as_object().unwrap();
    let (mut wrong, mut both) = (Vec::new(), 0);
    for (template, theirs) in templates.iter().zip(&theirs) {
        let ours = rendered(template, variables);
        both += usize::from(theirs.is_some());
        // `jinja2` folds a slice of a constant that has none to an undefined value, and refuses that of a variable.
        let is_folded = matches!(&ours, Err((_, fault)) if fault.contains("not subscriptable"));
        // In Python's text of a list, what `|e` made is shown with its type.
        let shows_type = matches!(theirs, Some(theirs) if theirs.contains("Markup("));
        if ours.as_ref().ok() != theirs.as_ref() && !is_folded && !shows_type {
            wrong.push(format!(
                "{template:?}\n  ours   {ours:?}\n  theirs {theirs:?}"
            ));
        }
    }
    wrong.sort_by_key(String::len);
    let shown = &wrong[..wrong.len().min(40)];
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        templates.len(),
        shown.join("\n")
    );
    assert!(both > templates.len() / 4, "{both}");
}
