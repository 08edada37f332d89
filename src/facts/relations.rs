//! The question templates of each relation: one for training, others as paraphrases.

/// A relation and its question templates; `{}` stands for the subject.
#[derive(Debug, PartialEq, Eq)]
pub struct Relation {
    /// Wikidata property, such as `P17`.
    pub id: &'static str,
    /// Its name, such as `country`.
    pub name: &'static str,
    /// The template of the training question; for the 24 relations of `EntityQuestions`, theirs.
    pub template: &'static str,
    /// Paraphrases, which measure whether a fact was learned or only its wording.
    pub paraphrases: &'static [&'static str],
    /// Whether `EntityQuestions` has it.
    pub entity_questions: bool,
    /// What its objects are by definition, if they have built-in spellings.
    pub objects: Option<ObjectKind>,
}

/// Objects that have built-in spellings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// Countries and territories.
    Country,
    /// Languages.
    Language,
}

impl Relation {
    /// The question about `subject`.
    pub fn question(&self, subject: &str) -> String {
        self.template.replace("{}", subject)
    }

    /// The paraphrased questions about `subject`.
    pub fn paraphrases(&self, subject: &str) -> Vec<String> {
        let fill = |template: &&str| template.replace("{}", subject);
        self.paraphrases.iter().map(fill).collect()
    }

    /// The subject of `question`, if it follows the template.
    pub fn subject<'q>(&self, question: &'q str) -> Option<&'q str> {
        let (before, after) = self
            .template
            .split_once("{}")
            .expect("every template has a `{}`");
        let subject = question
            .trim()
            .strip_prefix(before)?
            .strip_suffix(after)?
            .trim();
        (!subject.is_empty()).then_some(subject)
    }
}

/// The relation with the id (`P17`) or name (`country`) `name`, in any case.
pub fn relation(name: &str) -> Option<&'static Relation> {
    let name = name.trim();
    RELATIONS
        .iter()
        .find(|r| r.id.eq_ignore_ascii_case(name) || r.name.eq_ignore_ascii_case(name))
}

/// The name of a relation that is given by its id, such as `country` for `P17`; another relation as it stands.
pub fn relation_name(id: &str) -> &str {
    relation(id).map_or(id, |known| known.name)
}

/// Every relation that has a template, by id.
pub(super) fn all_relations() -> &'static [Relation] {
    RELATIONS
}

/// A relation of `EntityQuestions`.
const fn entity_questions_relation(
    id: &'static str,
    name: &'static str,
    template: &'static str,
    paraphrases: &'static [&'static str],
) -> Relation {
    Relation {
        id,
        name,
        template,
        paraphrases,
        entity_questions: true,
        objects: objects_of(id),
    }
}

/// What the objects of a relation are by definition.
const fn objects_of(id: &str) -> Option<ObjectKind> {
    match id.as_bytes() {
        b"P17" | b"P495" => Some(ObjectKind::Country),
        b"P37" | b"P407" => Some(ObjectKind::Language),
        _ => None,
    }
}

/// A relation of `pack:world` alone.
const fn pack_relation(
    id: &'static str,
    name: &'static str,
    template: &'static str,
    paraphrases: &'static [&'static str],
) -> Relation {
    Relation {
        entity_questions: false,
        ..entity_questions_relation(id, name, template, paraphrases)
    }
}

/// A subject is inserted unchanged, with its article if it has one (`the Netherlands`). No paraphrase begins with the subject or uses
/// "he" or "she".
#[rustfmt::skip]
const RELATIONS: &[Relation] = &[
    entity_questions_relation("P17", "country", "Which country is {} located in?",
       &["In which country is {}?", "Which nation does {} belong to?", "Name the country where {} can be found."]),
    entity_questions_relation("P19", "place of birth", "Where was {} born?",
       &["What is the birthplace of {}?", "In which place did the life of {} begin?", "Name the place where {} was born."]),
    entity_questions_relation("P20", "place of death", "Where did {} die?",
       &["In which place did the life of {} end?", "What is the place of death of {}?", "Name the place where {} died."]),
    entity_questions_relation("P26", "spouse", "Who is {} married to?",
       &["Who is the spouse of {}?", "Whom did {} marry?", "Name the husband or wife of {}."]),
    pack_relation("P30", "continent", "Which continent is {} part of?",
       &["On which continent does {} lie?", "What continent does {} belong to?", "Name the continent of {}."]),
    entity_questions_relation("P36", "capital", "What is the capital of {}?",
       &["Which city is the capital of {}?", "Name the capital city of {}.", "From which city is {} governed?"]),
    pack_relation("P37", "official language", "What is the official language of {}?",
       &["Which language is official in {}?", "In which language does the government of {} work?", "Name the official language of {}."]),
    pack_relation("P38", "currency", "What is the currency of {}?",
       &["Which currency is used in {}?", "With what money do people pay in {}?", "Name the currency of {}."]),
    entity_questions_relation("P40", "child", "Who is {}'s child?",
       &["Who is a son or daughter of {}?", "Whose parent is {}?", "Name the child of {}."]),
    entity_questions_relation("P50", "author", "Who is the author of {}?",
       &["Who wrote {}?", "By whom was {} written?", "Name the writer of {}."]),
    pack_relation("P61", "discoverer or inventor", "Who discovered or invented {}?",
       &["Who is known as the inventor or discoverer of {}?", "To whom do we owe {}?", "Name the person behind the discovery or invention of {}."]),
    entity_questions_relation("P69", "educated at", "Where was {} educated?",
       &["Which school or university did {} attend?", "At which institution did {} study?", "Name the place where {} was a student."]),
    pack_relation("P101", "field of work", "What was the field of {}?",
       &["In which field did {} work?", "Which science or art is {} known for?", "Name the field of work of {}."]),
    entity_questions_relation("P106", "occupation", "What kind of work does {} do?",
       &["What is the occupation of {}?", "What does {} do for a living?", "Name the profession of {}."]),
    entity_questions_relation("P112", "founder", "Who founded {}?",
       &["Who is the founder of {}?", "By whom was {} founded?", "Name the person who started {}."]),
    entity_questions_relation("P127", "owner", "Who owns {}?",
       &["Who is the owner of {}?", "To whom does {} belong?", "Name the owner of {}."]),
    entity_questions_relation("P131", "administrative location", "Where is {} located?",
       &["In which administrative area does {} lie?", "Which district, province or state contains {}?", "Name the area in which {} lies."]),
    entity_questions_relation("P136", "genre", "What type of music does {} play?",
       &["Which genre of music is {} known for?", "What is the musical genre of {}?", "Name the style of music of {}."]),
    entity_questions_relation("P159", "headquarters", "Where is the headquarter of {}?",
       &["In which place does {} have its headquarters?", "Where is {} based?", "Name the seat of {}."]),
    entity_questions_relation("P170", "creator", "Who was {} created by?",
       &["Who is the creator of {}?", "Who made {}?", "Name the creator of {}."]),
    entity_questions_relation("P175", "performer", "Who performed {}?",
       &["Who is the performer of {}?", "By whom was {} performed?", "Name the artist who recorded {}."]),
    entity_questions_relation("P176", "manufacturer", "Which company is {} produced by?",
       &["Which company makes {}?", "Who is the manufacturer of {}?", "Name the maker of {}."]),
    pack_relation("P246", "element symbol", "What is the chemical symbol of {}?",
       &["Which symbol stands for {} in the periodic table?", "How do chemists abbreviate {}?", "Give the symbol of the element {}."]),
    entity_questions_relation("P264", "record label", "What music label is {} represented by?",
       &["Which record label publishes {}?", "What is the record label of {}?", "Name the label that {} is signed to."]),
    entity_questions_relation("P276", "location", "Where is {} located?",
       &["In which place is {}?", "At what location can {} be found?", "Name the place where {} is."]),
    entity_questions_relation("P407", "language of work", "Which language was {} written in?",
       &["What is the language of {}?", "In which language is {}?", "Name the original language of {}."]),
    entity_questions_relation("P413", "position played", "What position does {} play?",
       &["On which position does {} play?", "What is the playing position of {}?", "Name the position that {} has in the team."]),
    entity_questions_relation("P495", "country of origin", "Which country was {} created in?",
       &["From which country does {} come?", "What is the country of origin of {}?", "Name the country where {} was made."]),
    entity_questions_relation("P740", "place of formation", "Where was {} founded?",
       &["In which place was {} formed?", "What is the place where {} began?", "Name the place where {} came into being."]),
    entity_questions_relation("P800", "notable work", "What is {} famous for?",
       &["What is {} best known for?", "Which work made {} famous?", "Name the best-known work of {}."]),
    pack_relation("P1086", "atomic number", "What is the atomic number of {}?",
       &["How many protons does an atom of {} have?", "Which place in the periodic table does {} have?", "Give the atomic number of the element {}."]),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn all_24_templates_of_entity_questions_give_the_subject_back() {
        let theirs: Vec<_> = RELATIONS.iter().filter(|r| r.entity_questions).collect();
        assert_eq!(theirs.len(), 24);
        for relation in RELATIONS {
            for subject in ["Bergamo", "Where is Waldo?", "O'Brien's child"] {
                let question = relation.question(subject);
                assert_eq!(
                    relation.subject(&question),
                    Some(subject),
                    "{}",
                    relation.id
                );
                assert_eq!(relation.subject("Is this a question?"), None);
            }
        }
    }

    #[test]
    fn every_relation_has_other_words_that_differ_and_name_the_subject_inside() {
        let mut ids = HashSet::new();
        for relation in RELATIONS {
            assert!(ids.insert(relation.id), "{} twice", relation.id);
            assert!(
                (2..=4).contains(&relation.paraphrases.len()),
                "{}",
                relation.id
            );
            let templates = relation.paraphrases.iter().chain([&relation.template]);
            let distinct: HashSet<_> = templates.clone().collect();
            assert_eq!(distinct.len(), relation.paraphrases.len() + 1);
            for template in templates {
                assert_eq!(template.matches("{}").count(), 1, "{template}");
                assert!(!template.starts_with("{}"), "{template}");
            }
        }
    }

    #[test]
    fn only_p131_and_p276_ask_alike() {
        for (i, a) in RELATIONS.iter().enumerate() {
            for b in &RELATIONS[i + 1..] {
                assert_eq!(
                    a.template == b.template,
                    (a.id, b.id) == ("P131", "P276"),
                    "{} {}",
                    a.id,
                    b.id
                );
            }
        }
    }

    #[test]
    fn a_relation_is_found_by_its_id_or_its_words() {
        assert_eq!(relation("p36").map(|r| r.id), Some("P36"));
        assert_eq!(relation("Capital").map(|r| r.id), Some("P36"));
        assert_eq!(relation("P999"), None);
        assert_eq!(relation_name("P36"), "capital");
        assert_eq!(relation_name("P999"), "P999");
    }
}
