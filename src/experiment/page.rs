//! The page of several experiments: every claim with its verdict, then each experiment with its figure and tables.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use super::{Experiment, FIGURE, Recorded, claim, judged};
use crate::{Result, run::Environment, whole};

/// An experiment and what became of it: a section of the page.
pub struct Section {
    /// The experiment.
    pub experiment: Experiment,
    /// What is recorded of it.
    pub recorded: Recorded,
    /// Its tables, in Markdown.
    pub tables: String,
    /// The folder of its figure.
    pub folder: PathBuf,
}

/// Writes the page to `path`.
///
/// # Errors
/// [`crate::Error::Io`] when it cannot be written.
pub fn write_page(sections: &[Section], path: &Path) -> Result<()> {
    let from = path.parent().unwrap_or(Path::new(""));
    whole::write(path, page(sections, from).as_bytes())
}

/// The page in Markdown; links to the figures are as seen from the folder `from`.
fn page(sections: &[Section], from: &Path) -> String {
    let mut out = String::from(
        "# The paper's figures and tables, reproduced\n\n\
         Written by `unforget reproduce all`: every experiment's file says beforehand what is claimed and by which rule it holds. \
         \"Holds\" where all of a 95% interval is within the rule (paired bootstrap over facts), \"no\" where none of it is, and \"cannot be \
         told\" in between; a claim without an interval is about means of runs, and decided by these. [METHODOLOGY](METHODOLOGY.md) says \
         what each number means.\n\n",
    );
    let _ = writeln!(out, "{}\n\n## Claims\n", made_on(sections));
    out += "| | claim | paper | here | holds? |\n|---|---|---|---|---|\n";
    for section in sections {
        for claim in judged(&section.experiment.claims, &section.recorded) {
            let _ = writeln!(
                out,
                "| [{}](#{}) | {}",
                called(&section.experiment.name),
                section.experiment.name,
                claim::cells(&claim)
            );
        }
    }
    for section in sections {
        out += &told(section, from);
    }
    out
}

/// One experiment.
fn told(section: &Section, from: &Path) -> String {
    let experiment = &section.experiment;
    let mut out = format!(
        "\n## <a id=\"{}\"></a>{}: {}\n\n",
        experiment.name,
        called(&experiment.name),
        experiment.title
    );
    let figure = section.folder.join(FIGURE);
    if figure.is_file() {
        let link = pathdiff::diff_paths(&figure, from).unwrap_or(figure);
        let _ = writeln!(out, "![{}]({})\n", experiment.title, link.display());
    }
    out += &section.tables;
    if let Some(reading) = &experiment.reading {
        let _ = writeln!(out, "\n{}", reading.trim());
    }
    let _ = writeln!(out, "\n`unforget reproduce {}`", experiment.name);
    out
}

/// The models and the machines of the records.
fn made_on(sections: &[Section]) -> String {
    let environments = sections.iter().flat_map(|section| {
        let runs = section.recorded.runs.iter();
        runs.map(|run| &run.environment)
    });
    let mut machines: Vec<String> = environments
        .map(|on: &Environment| {
            format!(
                "{} ({:.0} M weights) on {} {} of {}, version {}",
                on.model.name,
                on.model.parameters as f64 / 1e6,
                on.threads,
                if on.threads == 1 { "thread" } else { "threads" },
                on.cpu,
                on.version
            )
        })
        .collect();
    machines.sort();
    machines.dedup();
    let runs: usize = sections.iter().map(|s| s.recorded.runs.len()).sum();
    if machines.is_empty() {
        return "Nothing is recorded yet.".into();
    }
    format!("{runs} recorded runs, of {}.", machines.join("; "))
}

/// `fig2` as the paper calls it: Figure 2.
fn called(name: &str) -> String {
    let numbered = [("fig", "Figure"), ("table", "Table")];
    let found = numbered
        .iter()
        .find_map(|(short, long)| Some(format!("{long} {}", name.strip_prefix(short)?)));
    found.unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_of_every_claim_whether_it_holds() {
        let experiment = Experiment::find("fig2").expect("it comes with the program");
        let section = Section {
            experiment,
            recorded: Recorded::default(),
            tables: "| a table |\n".into(),
            folder: "experiments/results/fig2/small".into(),
        };
        let page = page(&[section], Path::new("docs"));
        assert!(page.contains("Nothing is recorded yet."));
        assert!(page.contains(
            "| [Figure 2](#fig2) | Plain fine-tuning learns the new facts | 95% |  | not run"
        ));
        assert!(page.contains("<a id=\"fig2\"></a>Figure 2: Learning new facts breaks known ones"));
    }
}
