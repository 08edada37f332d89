//! The order of modules: every import in `src/` points down the list in `src/lib.rs`, and the files of a top-level module have no
//! import cycle. Test code is exempt.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A path through modules, from the root on: `["train", "adamw"]`; the root is empty.
type Module = Vec<String>;

/// One file of the source, without its tests.
#[derive(Default)]
struct Source {
    children: BTreeSet<String>,
    uses: Vec<Use>,
    /// Paths of two segments and more outside `use`.
    paths: Vec<Vec<String>>,
    /// All other names in the code.
    names: BTreeSet<String>,
}

/// One name that a `use` brings into scope; `*` for all of a module.
struct Use {
    name: String,
    path: Vec<String>,
    is_public: bool,
}

/// All modules that `lib.rs` and `main.rs` declare.
struct SourceTree {
    files: BTreeMap<Module, Source>,
}

fn source_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Splits Rust into identifiers, `::` and single characters, without comments and literals.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut out, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        let c = chars[i];
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && chars[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if c == '"' {
            i += 1;
            while i < chars.len() && chars[i] != '"' {
                i += if chars[i] == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            i += if at(i + 1) == '\\' { 3 } else { 2 };
            while i < chars.len() && chars[i] != '\'' {
                i += 1;
            }
            i += 1;
        } else if is_word(c) {
            let start = i;
            while is_word(at(i)) {
                i += 1;
            }
            let word: String = chars[start..i].iter().collect();
            let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
            if ["r", "br", "cr"].contains(&&word[..]) && at(i + hashes) == '"' {
                let end: Vec<char> = format!("\"{}", "#".repeat(hashes)).chars().collect();
                i += hashes + 1;
                while i < chars.len() && !chars[i..].starts_with(&end) {
                    i += 1;
                }
                i += end.len();
            } else {
                out.push(word);
            }
        } else if c == ':' && at(i + 1) == ':' {
            out.push("::".into());
            i += 2;
        } else {
            if !c.is_whitespace() {
                out.push(c.into());
            }
            i += 1;
        }
    }
    out
}

/// The index after the bracket that closes the one at `open`.
fn after_bracket(tokens: &[String], open: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match &token[..] {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

/// The index after the item that starts at `start`, its attributes included.
fn after_item(tokens: &[String], start: usize) -> usize {
    let mut i = start;
    while i < tokens.len() {
        i = match &tokens[i][..] {
            ";" => return i + 1,
            "{" => return after_bracket(tokens, i),
            "(" | "[" => after_bracket(tokens, i),
            _ => i + 1,
        };
    }
    i
}

/// The tokens of all items that are not only there in tests.
fn without_tests(tokens: &[String]) -> Vec<String> {
    let (mut out, mut i) = (Vec::new(), 0);
    while i < tokens.len() {
        if tokens[i] == "#" && tokens.get(i + 1).is_some_and(|t| t == "[") {
            let end = after_bracket(tokens, i + 1);
            let has = |word: &str| tokens[i..end].iter().any(|t| t == word);
            if has("cfg") && has("test") && !has("not") {
                i = after_item(tokens, end);
                continue;
            }
        }
        out.push(tokens[i].clone());
        i += 1;
    }
    out
}

/// Reads the tree of one `use` from `i` on, up to the `,`, `}` or `;` behind it, and returns the index of that.
fn read_use(tokens: &[String], mut i: usize, prefix: &[String], found: &mut Vec<Use>) -> usize {
    let mut path = prefix.to_vec();
    let mut name = None;
    loop {
        match &tokens[i][..] {
            "::" => i += 1,
            "{" => {
                i += 1;
                while tokens[i] != "}" {
                    i = read_use(tokens, i, &path, found);
                    if tokens[i] == "," {
                        i += 1;
                    }
                }
                return i + 1;
            }
            "as" => {
                name = Some(tokens[i + 1].clone());
                i += 2;
            }
            "," | "}" | ";" => break,
            "self" if !path.is_empty() => i += 1,
            segment => {
                path.push(segment.into());
                i += 1;
            }
        }
    }
    let last = path.last().cloned().unwrap_or_default();
    found.push(Use {
        name: name.unwrap_or(last),
        path,
        is_public: false,
    });
    i
}

impl Source {
    fn parse(text: &str) -> Self {
        let tokens = without_tests(&tokens(text));
        let mut source = Self::default();
        let (mut i, mut is_public) = (0, false);
        while i < tokens.len() {
            match &tokens[i][..] {
                "pub" => {
                    is_public = true;
                    i += 1;
                    if tokens[i] == "(" {
                        i = after_bracket(&tokens, i);
                    }
                    continue;
                }
                "mod" if tokens[i + 2] == ";" => {
                    source.children.insert(tokens[i + 1].clone());
                    i += 3;
                }
                "use" if tokens[i + 1] != "<" => {
                    let first = source.uses.len();
                    i = read_use(&tokens, i + 1, &[], &mut source.uses);
                    for found in &mut source.uses[first..] {
                        found.is_public = is_public;
                    }
                }
                word if word.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                    let mut path = vec![word.to_owned()];
                    let is_inside = i > 0 && [".", "::"].contains(&&tokens[i - 1][..]);
                    while tokens.get(i + 1).is_some_and(|t| t == "::")
                        && tokens
                            .get(i + 2)
                            .is_some_and(|t| t.starts_with(|c: char| c.is_alphabetic() || c == '_'))
                    {
                        path.push(tokens[i + 2].clone());
                        i += 2;
                    }
                    if !is_inside {
                        source.names.insert(path[0].clone());
                        if path.len() > 1 {
                            source.paths.push(path);
                        }
                    }
                    i += 1;
                }
                _ => i += 1,
            }
            is_public = false;
        }
        source
    }
}

impl SourceTree {
    fn read() -> Self {
        let mut tree = Self {
            files: BTreeMap::new(),
        };
        let src = source_directory();
        tree.add(vec![], &src.join("lib.rs"), &src);
        // The modules of the binary are next to those of the library.
        let main = Source::parse(&fs::read_to_string(src.join("main.rs")).expect("it is there"));
        for child in main.children {
            tree.add_child(&[], &child, &src);
        }
        tree
    }

    fn add(&mut self, module: Module, file: &Path, folder: &Path) {
        let text = fs::read_to_string(file).expect("a readable file");
        let source = Source::parse(&text);
        for child in &source.children {
            self.add_child(&module, child, folder);
        }
        self.files.insert(module, source);
    }

    fn add_child(&mut self, parent: &[String], child: &str, folder: &Path) {
        let module = [parent, &[child.to_owned()]].concat();
        let own = folder.join(child);
        let file = folder.join(format!("{child}.rs"));
        let file = if file.is_file() {
            file
        } else {
            own.join("mod.rs")
        };
        self.add(module, &file, &own);
    }

    /// The module in which the item at `path` is defined, as seen from `module`; `None` for other crates and local names.
    fn resolve(&self, module: &[String], path: &[String], depth: usize) -> Option<Module> {
        let (first, mut rest) = path.split_first()?;
        let mut at: Module = match &first[..] {
            "crate" | "unforget" => vec![],
            "self" => module.to_vec(),
            "super" => module[..module.len() - 1].to_vec(),
            _ => {
                rest = path;
                let source = &self.files[module];
                let is_known = source.children.contains(first)
                    || source
                        .uses
                        .iter()
                        .any(|u| u.name == *first && u.path[0] != *first);
                if !is_known {
                    return None;
                }
                module.to_vec()
            }
        };
        while let Some((segment, behind)) = rest.split_first() {
            if segment == "super" {
                at.pop();
                rest = behind;
                continue;
            }
            let child = [&at[..], std::slice::from_ref(segment)].concat();
            if self.files.contains_key(&child) {
                (at, rest) = (child, behind);
                continue;
            }
            let uses = &self.files[&at].uses;
            let Some(found) = uses
                .iter()
                .find(|u| u.name == *segment && u.path[0] != *segment)
            else {
                break;
            };
            assert!(depth < 20, "a re-export of itself: {path:?}");
            return self.resolve(&at, &[&found.path[..], behind].concat(), depth + 1);
        }
        Some(at)
    }

    /// The modules that each module names, without itself. A re-export counts only if the module also uses the name.
    fn arrows(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let mut arrows: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (module, source) in &self.files {
            let uses = source.uses.iter();
            let uses = uses.filter(|u| !u.is_public || source.names.contains(&u.name));
            let paths = uses.map(|u| &u.path).chain(&source.paths);
            let named = paths.filter_map(|path| self.resolve(module, path, 0));
            let others = named.filter(|to| to != module);
            arrows.insert(module.clone(), others.collect());
        }
        arrows
    }
}

/// The top-level modules in the order in which `src/lib.rs` lists them, the highest first.
fn order() -> Vec<String> {
    let text = fs::read_to_string(source_directory().join("lib.rs")).expect("it is there");
    let list = text
        .lines()
        .skip_while(|line| *line != "//! # Modules")
        .skip(1);
    let list = list.take_while(|line| line.starts_with("//!") && !line.starts_with("//! #"));
    let names = list.filter_map(|line| line.strip_prefix("//! - ")?.split_once(": "));
    let names = names.flat_map(|(names, _)| names.split(", "));
    names
        .map(|name| name.trim_matches(['`', '[', ']']).to_owned())
        .collect()
}

fn path_of(module: &[String]) -> String {
    module.join("::")
}

/// All modules that can be reached from `from`.
fn reachable<'a>(
    arrows: &'a BTreeMap<Module, BTreeSet<Module>>,
    from: &'a Module,
) -> BTreeSet<&'a Module> {
    let mut seen = BTreeSet::new();
    let mut left = vec![from];
    while let Some(module) = left.pop() {
        let targets = arrows[module].iter();
        left.extend(targets.filter(|to| to.first() == from.first() && seen.insert(*to)));
    }
    seen
}

#[test]
fn imports_point_down_the_list_of_modules() {
    let order = order();
    let arrows = SourceTree::read().arrows();
    let rooms: BTreeSet<&String> = arrows.keys().filter_map(|module| module.first()).collect();
    let listed: BTreeSet<&String> = order.iter().collect();
    assert_eq!(rooms, listed, "src/lib.rs lists every module once");
    let place = |module: &Module| order.iter().position(|room| *room == module[0]);
    let mut upward = Vec::new();
    for (from, targets) in arrows.iter().filter(|(from, _)| !from.is_empty()) {
        for to in targets.iter().filter(|to| !to.is_empty()) {
            if place(from) > place(to) {
                upward.push(format!("{} -> {}", path_of(from), path_of(to)));
            }
        }
    }
    assert!(
        upward.is_empty(),
        "imports against the order of modules:\n{}",
        upward.join("\n")
    );
}

#[test]
fn the_files_of_a_module_have_no_import_cycle() {
    let arrows = SourceTree::read().arrows();
    let mut circles = Vec::new();
    for (from, targets) in arrows.iter().filter(|(from, _)| !from.is_empty()) {
        for to in targets
            .iter()
            .filter(|to| !to.is_empty() && to[0] == from[0])
        {
            if reachable(&arrows, to).contains(from) {
                circles.push(format!("{} -> {}", path_of(from), path_of(to)));
            }
        }
    }
    assert!(
        circles.is_empty(),
        "imports in a circle:\n{}",
        circles.join("\n")
    );
}

#[test]
fn every_form_of_path_is_an_arrow_and_test_code_is_none() {
    let sources = [
        ("", "mod a; mod b; pub use a::Item;"),
        (
            "a",
            "mod inner; pub use inner::Item; use crate::{b::{self, Y as Z}};",
        ),
        (
            "a::inner",
            "pub struct Item; fn f() { super::super::b::g(); }
             #[cfg(test)] mod tests { use crate::a::T; }",
        ),
        (
            "b",
            "use crate::Item; // crate::a::c
             const TEXT: &str = \"crate::a::c\"; fn h<'x>(c: char) -> bool { c == '\"' }
             #[cfg(test)] fn t() { crate::a::c() }",
        ),
    ];
    let module = |path: &str| -> Module {
        let segments = path.split("::").filter(|segment| !segment.is_empty());
        segments.map(str::to_owned).collect()
    };
    let files = sources.map(|(path, text)| (module(path), Source::parse(text)));
    let tree = SourceTree {
        files: files.into_iter().collect(),
    };
    let arrows = tree.arrows();
    let targets = |path: &str| -> Vec<String> {
        let targets = arrows[&module(path)].iter();
        targets.map(|to| path_of(to)).collect()
    };
    assert_eq!(targets("a"), ["b"]);
    assert_eq!(targets("a::inner"), ["b"]);
    assert_eq!(targets("b"), ["a::inner"]);
}
