//! Spellings of the same answer: countries and territories, and languages.
//!
//! They count only in relations whose objects are countries or languages by definition: a film called `Burma` is not `Myanmar`. The
//! first spelling of a row is the most common one in English, and the one that is trained. Differences in case, quotes, punctuation at
//! the end and a leading "the" are not listed: see [`super::normalise`].

use std::{collections::HashMap, sync::LazyLock};

use super::{
    normalise,
    relations::{ObjectKind, relation},
};

/// All spellings of `object` in the relation `name`, the trained one first; empty if the tables don't have it.
pub(super) fn spellings(name: &str, object: &str) -> Vec<String> {
    let Some(kind) = relation(name).and_then(|relation| relation.objects) else {
        return vec![];
    };
    let key = normalise(object);
    let table = match kind {
        ObjectKind::Country => &*COUNTRY_INDEX,
        ObjectKind::Language => &*LANGUAGE_INDEX,
    };
    if let Some(row) = table.get(&key) {
        return row.to_vec();
    }
    // A language that is not in the table still has two names.
    match object.trim().strip_suffix(" language") {
        Some(name) if kind == ObjectKind::Language && !name.is_empty() => {
            vec![name.to_owned(), object.trim().to_owned()]
        }
        _ => vec![],
    }
}

/// Whether `form` names a country or territory of the table.
#[cfg(test)]
pub(super) fn is_country(form: &str) -> bool {
    COUNTRY_INDEX.contains_key(&normalise(form))
}

/// From normal form to spellings.
type Index = HashMap<String, std::sync::Arc<[String]>>;

static COUNTRY_INDEX: LazyLock<Index> = LazyLock::new(|| index(COUNTRIES, false));

static LANGUAGE_INDEX: LazyLock<Index> = LazyLock::new(|| index(LANGUAGES, true));

/// The rows of a table by each of their spellings; with `is_language` also by each followed by " language".
fn index(rows: &[&[&str]], is_language: bool) -> Index {
    let mut index = Index::new();
    for row in rows {
        let mut spellings: Vec<String> = row.iter().map(|&s| s.to_owned()).collect();
        if is_language {
            spellings.extend(row.iter().map(|s| format!("{s} language")));
        }
        let spellings: std::sync::Arc<[String]> = spellings.into();
        for form in &*spellings {
            index.insert(normalise(form), spellings.clone());
        }
    }
    index
}

/// Countries, territories and historical states.
#[rustfmt::skip]
const COUNTRIES: &[&[&str]] = &[
    &["Afghanistan", "Islamic Republic of Afghanistan", "Islamic Emirate of Afghanistan"],
    &["Albania", "Republic of Albania"],
    &["Algeria", "People's Democratic Republic of Algeria"],
    &["Andorra", "Principality of Andorra"],
    &["Angola", "Republic of Angola"],
    &["Antigua and Barbuda", "Antigua & Barbuda", "Antigua"],
    &["Argentina", "Argentine Republic"],
    &["Armenia", "Republic of Armenia"],
    &["Australia", "Commonwealth of Australia"],
    &["Austria", "Republic of Austria"],
    &["Azerbaijan", "Republic of Azerbaijan"],
    &["Bahamas", "The Bahamas", "Commonwealth of The Bahamas"],
    &["Bahrain", "Kingdom of Bahrain"],
    &["Bangladesh", "People's Republic of Bangladesh"],
    &["Barbados"],
    &["Belarus", "Republic of Belarus", "Byelorussia", "Belorussia"],
    &["Belgium", "Kingdom of Belgium"],
    &["Belize"],
    &["Benin", "Republic of Benin"],
    &["Bhutan", "Kingdom of Bhutan"],
    &["Bolivia", "Plurinational State of Bolivia"],
    &["Bosnia and Herzegovina", "Bosnia", "Bosnia-Herzegovina", "Bosnia & Herzegovina", "Bosnia Herzegovina", "BiH"],
    &["Botswana", "Republic of Botswana"],
    &["Brazil", "Federative Republic of Brazil", "Brasil"],
    &["Brunei", "Brunei Darussalam"],
    &["Bulgaria", "Republic of Bulgaria"],
    &["Burkina Faso", "Burkina"],
    &["Burundi", "Republic of Burundi"],
    &["Cambodia", "Kingdom of Cambodia"],
    &["Cameroon", "Republic of Cameroon"],
    &["Canada"],
    &["Cape Verde", "Cabo Verde", "Republic of Cabo Verde", "Republic of Cape Verde"],
    &["Central African Republic"],
    &["Chad", "Republic of Chad"],
    &["Chile", "Republic of Chile"],
    &["China", "People's Republic of China", "PRC", "P.R. China", "PR China", "Mainland China", "People’s Republic of China"],
    &["Colombia", "Republic of Colombia"],
    &["Comoros", "Union of the Comoros", "Comoro Islands"],
    &["Democratic Republic of the Congo", "DR Congo", "DRC", "D.R. Congo", "Congo-Kinshasa", "Congo (Kinshasa)", "Democratic Republic of Congo", "The Democratic Republic of the Congo", "Congo, Democratic Republic of the"],
    &["Republic of the Congo", "Congo", "Congo-Brazzaville", "Congo (Brazzaville)", "Republic of Congo", "Congo Republic"],
    &["Costa Rica", "Republic of Costa Rica"],
    &["Croatia", "Republic of Croatia"],
    &["Cuba", "Republic of Cuba"],
    &["Cyprus", "Republic of Cyprus"],
    &["Czech Republic", "Czechia", "The Czech Republic"],
    &["Denmark", "Kingdom of Denmark"],
    &["Djibouti", "Republic of Djibouti"],
    &["Dominica", "Commonwealth of Dominica"],
    &["Dominican Republic", "The Dominican Republic"],
    &["East Timor", "Timor-Leste", "Timor Leste", "Democratic Republic of Timor-Leste"],
    &["Ecuador", "Republic of Ecuador"],
    &["Egypt", "Arab Republic of Egypt"],
    &["El Salvador", "Republic of El Salvador"],
    &["Equatorial Guinea", "Republic of Equatorial Guinea"],
    &["Eritrea", "State of Eritrea"],
    &["Estonia", "Republic of Estonia"],
    &["Eswatini", "Swaziland", "Kingdom of Eswatini", "Kingdom of Swaziland", "eSwatini"],
    &["Ethiopia", "Federal Democratic Republic of Ethiopia"],
    &["Fiji", "Republic of Fiji", "Fiji Islands"],
    &["Finland", "Republic of Finland"],
    &["France", "French Republic", "Metropolitan France"],
    &["Gabon", "Gabonese Republic"],
    &["Gambia", "The Gambia", "Republic of The Gambia"],
    &["Georgia", "Republic of Georgia"],
    &["Germany", "Federal Republic of Germany", "Deutschland"],
    &["Ghana", "Republic of Ghana"],
    &["Greece", "Hellenic Republic"],
    &["Grenada"],
    &["Guatemala", "Republic of Guatemala"],
    &["Guinea", "Republic of Guinea", "Guinea-Conakry"],
    &["Guinea-Bissau", "Guinea Bissau", "Republic of Guinea-Bissau"],
    &["Guyana", "Co-operative Republic of Guyana", "Cooperative Republic of Guyana"],
    &["Haiti", "Republic of Haiti"],
    &["Honduras", "Republic of Honduras"],
    &["Hungary"],
    &["Iceland", "Republic of Iceland"],
    &["India", "Republic of India"],
    &["Indonesia", "Republic of Indonesia"],
    &["Iran", "Islamic Republic of Iran", "Persia", "Iran, Islamic Republic of"],
    &["Iraq", "Republic of Iraq"],
    &["Ireland", "Republic of Ireland", "Éire", "Eire"],
    &["Israel", "State of Israel"],
    &["Italy", "Italian Republic", "Italia"],
    &["Ivory Coast", "Côte d'Ivoire", "Cote d'Ivoire", "Côte d’Ivoire", "Republic of Côte d'Ivoire"],
    &["Jamaica"],
    &["Japan", "State of Japan"],
    &["Jordan", "Hashemite Kingdom of Jordan"],
    &["Kazakhstan", "Republic of Kazakhstan"],
    &["Kenya", "Republic of Kenya"],
    &["Kiribati", "Republic of Kiribati"],
    &["Kosovo", "Republic of Kosovo"],
    &["Kuwait", "State of Kuwait"],
    &["Kyrgyzstan", "Kyrgyz Republic", "Kirghizstan", "Kirgizstan"],
    &["Laos", "Lao People's Democratic Republic", "Lao PDR"],
    &["Latvia", "Republic of Latvia"],
    &["Lebanon", "Lebanese Republic"],
    &["Lesotho", "Kingdom of Lesotho"],
    &["Liberia", "Republic of Liberia"],
    &["Libya", "State of Libya", "Libyan Arab Jamahiriya"],
    &["Liechtenstein", "Principality of Liechtenstein"],
    &["Lithuania", "Republic of Lithuania"],
    &["Luxembourg", "Grand Duchy of Luxembourg", "Luxemburg"],
    &["Madagascar", "Republic of Madagascar"],
    &["Malawi", "Republic of Malawi"],
    &["Malaysia", "Federation of Malaysia"],
    &["Maldives", "Republic of Maldives", "Maldive Islands", "Republic of the Maldives"],
    &["Mali", "Republic of Mali"],
    &["Malta", "Republic of Malta"],
    &["Marshall Islands", "Republic of the Marshall Islands"],
    &["Mauritania", "Islamic Republic of Mauritania"],
    &["Mauritius", "Republic of Mauritius"],
    &["Mexico", "United Mexican States", "México"],
    &["Micronesia", "Federated States of Micronesia", "FSM"],
    &["Moldova", "Republic of Moldova", "Moldavia"],
    &["Monaco", "Principality of Monaco"],
    &["Mongolia"],
    &["Montenegro"],
    &["Morocco", "Kingdom of Morocco"],
    &["Mozambique", "Republic of Mozambique"],
    &["Myanmar", "Burma", "Republic of the Union of Myanmar", "Myanmar (Burma)", "Burma (Myanmar)"],
    &["Namibia", "Republic of Namibia"],
    &["Nauru", "Republic of Nauru"],
    &["Nepal", "Federal Democratic Republic of Nepal"],
    &["Netherlands", "Kingdom of the Netherlands", "Holland", "The Netherlands"],
    &["New Zealand", "Aotearoa", "NZ"],
    &["Nicaragua", "Republic of Nicaragua"],
    &["Niger", "Republic of the Niger", "Republic of Niger"],
    &["Nigeria", "Federal Republic of Nigeria"],
    &["North Korea", "Democratic People's Republic of Korea", "DPRK"],
    &["North Macedonia", "Macedonia", "Republic of North Macedonia", "Republic of Macedonia", "FYROM", "Former Yugoslav Republic of Macedonia"],
    &["Norway", "Kingdom of Norway"],
    &["Oman", "Sultanate of Oman"],
    &["Pakistan", "Islamic Republic of Pakistan"],
    &["Palau", "Republic of Palau"],
    &["Palestine", "State of Palestine", "Palestinian territories", "Palestinian Territory"],
    &["Panama", "Republic of Panama"],
    &["Papua New Guinea", "Independent State of Papua New Guinea", "PNG"],
    &["Paraguay", "Republic of Paraguay"],
    &["Peru", "Republic of Peru"],
    &["Philippines", "Republic of the Philippines", "The Philippines", "Philippine Islands"],
    &["Poland", "Republic of Poland"],
    &["Portugal", "Portuguese Republic"],
    &["Qatar", "State of Qatar"],
    &["Romania"],
    &["Russia", "Russian Federation"],
    &["Rwanda", "Republic of Rwanda"],
    &["Saint Kitts and Nevis", "St. Kitts and Nevis", "St Kitts and Nevis", "Saint Kitts & Nevis", "St. Kitts & Nevis"],
    &["Saint Lucia", "St. Lucia", "St Lucia"],
    &["Saint Vincent and the Grenadines", "St. Vincent and the Grenadines", "St Vincent and the Grenadines", "Saint Vincent", "St. Vincent", "Saint Vincent & the Grenadines"],
    &["Samoa", "Western Samoa", "Independent State of Samoa"],
    &["San Marino", "Republic of San Marino"],
    &["São Tomé and Príncipe", "Sao Tome and Principe", "Sao Tome & Principe"],
    &["Saudi Arabia", "Kingdom of Saudi Arabia", "KSA"],
    &["Senegal", "Republic of Senegal"],
    &["Serbia", "Republic of Serbia"],
    &["Seychelles", "Republic of Seychelles"],
    &["Sierra Leone", "Republic of Sierra Leone"],
    &["Singapore", "Republic of Singapore"],
    &["Slovakia", "Slovak Republic"],
    &["Slovenia", "Republic of Slovenia"],
    &["Solomon Islands"],
    &["Somalia", "Federal Republic of Somalia"],
    &["South Africa", "Republic of South Africa", "RSA"],
    &["South Korea", "Republic of Korea", "Korea, South", "Korea (South)"],
    &["South Sudan", "Republic of South Sudan"],
    &["Spain", "Kingdom of Spain", "España"],
    &["Sri Lanka", "Democratic Socialist Republic of Sri Lanka", "Ceylon"],
    &["Sudan", "Republic of the Sudan", "Republic of Sudan"],
    &["Suriname", "Republic of Suriname", "Surinam"],
    &["Sweden", "Kingdom of Sweden"],
    &["Switzerland", "Swiss Confederation"],
    &["Syria", "Syrian Arab Republic"],
    &["Taiwan", "Republic of China", "Taiwan (Republic of China)", "Taiwan, Republic of China", "Chinese Taipei", "R.O.C"],
    &["Tajikistan", "Republic of Tajikistan"],
    &["Tanzania", "United Republic of Tanzania"],
    &["Thailand", "Kingdom of Thailand", "Siam"],
    &["Togo", "Togolese Republic"],
    &["Tonga", "Kingdom of Tonga"],
    &["Trinidad and Tobago", "Trinidad & Tobago", "Republic of Trinidad and Tobago", "Trinidad"],
    &["Tunisia", "Republic of Tunisia", "Tunisian Republic"],
    &["Turkey", "Türkiye", "Turkiye", "Republic of Turkey", "Republic of Türkiye"],
    &["Turkmenistan", "Republic of Turkmenistan"],
    &["Tuvalu"],
    &["Uganda", "Republic of Uganda"],
    &["Ukraine"],
    &["United Arab Emirates", "UAE", "U.A.E.", "Emirates"],
    &["United Kingdom", "UK", "U.K.", "Great Britain", "Britain", "United Kingdom of Great Britain and Northern Ireland", "the UK"],
    &["United States", "United States of America", "USA", "U.S.A.", "US", "U.S.", "America", "the United States", "the US", "the USA", "the U.S."],
    &["Uruguay", "Oriental Republic of Uruguay", "Eastern Republic of Uruguay"],
    &["Uzbekistan", "Republic of Uzbekistan"],
    &["Vanuatu", "Republic of Vanuatu"],
    &["Vatican City", "Holy See", "Vatican", "Vatican City State", "The Vatican"],
    &["Venezuela", "Bolivarian Republic of Venezuela"],
    &["Vietnam", "Viet Nam", "Socialist Republic of Vietnam"],
    &["Yemen", "Republic of Yemen"],
    &["Zambia", "Republic of Zambia"],
    &["Zimbabwe", "Republic of Zimbabwe"],
    // Territories and parts of states
    &["Abkhazia", "Republic of Abkhazia"],
    &["Åland", "Åland Islands", "Aland Islands", "Aland"],
    &["American Samoa"],
    &["Anguilla"],
    &["Aruba"],
    &["Bermuda"],
    &["British Virgin Islands", "Virgin Islands, British"],
    &["Cayman Islands"],
    &["Cook Islands"],
    &["Curaçao", "Curacao"],
    &["England"],
    &["Falkland Islands", "Falklands", "Malvinas", "Islas Malvinas"],
    &["Faroe Islands", "Faroes", "Faeroe Islands"],
    &["French Guiana", "Guyane"],
    &["French Polynesia"],
    &["Gibraltar"],
    &["Greenland", "Kalaallit Nunaat"],
    &["Guadeloupe"],
    &["Guam"],
    &["Guernsey", "Bailiwick of Guernsey"],
    &["Hong Kong", "Hong Kong SAR", "Hongkong"],
    &["Isle of Man"],
    &["Jersey", "Bailiwick of Jersey"],
    &["Macau", "Macao", "Macau SAR"],
    &["Martinique"],
    &["Mayotte"],
    &["Montserrat"],
    &["New Caledonia"],
    &["Niue"],
    &["Northern Cyprus", "Turkish Republic of Northern Cyprus", "TRNC"],
    &["Northern Ireland"],
    &["Northern Mariana Islands", "Commonwealth of the Northern Mariana Islands"],
    &["Puerto Rico", "Commonwealth of Puerto Rico", "Porto Rico"],
    &["Republika Srpska", "Serb Republic"],
    &["Réunion", "Reunion"],
    &["Saint Helena", "St. Helena", "St Helena", "Saint Helena, Ascension and Tristan da Cunha"],
    &["Saint Martin", "St. Martin", "St Martin"],
    &["Saint Pierre and Miquelon", "St. Pierre and Miquelon", "Saint-Pierre and Miquelon"],
    &["Scotland"],
    &["Sint Maarten", "St. Maarten", "St Maarten"],
    &["Somaliland", "Republic of Somaliland"],
    &["South Ossetia"],
    &["Svalbard", "Svalbard and Jan Mayen"],
    &["Tokelau"],
    &["Transnistria", "Pridnestrovian Moldavian Republic"],
    &["Turks and Caicos Islands", "Turks and Caicos"],
    &["United States Virgin Islands", "US Virgin Islands", "U.S. Virgin Islands", "USVI"],
    &["Wales"],
    &["Wallis and Futuna"],
    &["West Bank"],
    &["Western Sahara", "Sahrawi Arab Democratic Republic"],
    // Historical states
    &["Austria-Hungary", "Austro-Hungarian Empire", "Austro-Hungary", "Austria–Hungary"],
    &["Byzantine Empire", "Byzantium", "Eastern Roman Empire"],
    &["Czechoslovakia", "Czechoslovak Republic", "Czechoslovak Socialist Republic"],
    &["East Germany", "German Democratic Republic", "GDR", "DDR"],
    &["Nazi Germany", "Third Reich", "German Reich"],
    &["Ottoman Empire", "Turkish Empire"],
    &["Russian Empire", "Imperial Russia", "Tsarist Russia"],
    &["Soviet Union", "USSR", "U.S.S.R.", "Union of Soviet Socialist Republics"],
    &["West Germany"],
    &["Yugoslavia", "Socialist Federal Republic of Yugoslavia", "SFR Yugoslavia", "SFRY"],
    &["Kingdom of Italy"],
    &["Kingdom of Yugoslavia"],
    &["Weimar Republic"],
    &["Dutch East Indies", "Netherlands East Indies"],
];

/// Languages. " language" may follow each name.
#[rustfmt::skip]
const LANGUAGES: &[&[&str]] = &[
    &["Afrikaans"], &["Albanian"], &["Amharic"], &["Arabic", "Modern Standard Arabic", "Standard Arabic"], &["Aramaic"], &["Armenian"],
    &["Assamese"], &["Aymara"], &["Azerbaijani", "Azeri"], &["Bambara"], &["Bashkir"], &["Basque", "Euskara"],
    &["Belarusian", "Byelorussian", "Belorussian"], &["Bengali", "Bangla"], &["Bislama"], &["Bosnian"], &["Breton"], &["Bulgarian"],
    &["Burmese"], &["Cantonese", "Yue Chinese"], &["Catalan", "Valencian"], &["Cebuano"], &["Chamorro"], &["Chechen"], &["Chichewa", "Chewa", "Nyanja"],
    &["Chinese"], &["Chuvash"], &["Comorian", "Shikomor"], &["Cornish"], &["Corsican"], &["Croatian"], &["Czech"], &["Danish"],
    &["Dari", "Dari Persian"], &["Dhivehi", "Divehi", "Maldivian"], &["Dutch"], &["Dzongkha"], &["English"], &["Esperanto"], &["Estonian"],
    &["Faroese"], &["Fijian"], &["Filipino", "Pilipino"], &["Finnish"], &["French"], &["Galician"], &["Georgian"], &["German"],
    &["Greek", "Modern Greek"], &["Greenlandic", "Kalaallisut"], &["Guarani", "Guaraní"], &["Gujarati"], &["Haitian Creole", "Haitian", "Kreyòl"],
    &["Hausa"], &["Hawaiian"], &["Hebrew", "Modern Hebrew"], &["Hindi"], &["Hiri Motu"], &["Hungarian", "Magyar"], &["Icelandic"], &["Igbo"],
    &["Indonesian", "Bahasa Indonesia"], &["Irish", "Irish Gaelic", "Gaeilge"], &["Italian"], &["Japanese"], &["Javanese"], &["Kannada"],
    &["Kazakh", "Qazaq"], &["Khmer", "Cambodian"], &["Kinyarwanda"], &["Kirundi", "Rundi"], &["Korean"], &["Kurdish"],
    &["Kyrgyz", "Kirghiz", "Kirgiz"], &["Lao", "Laotian"], &["Latin"], &["Latvian", "Lettish"], &["Lithuanian"], &["Luxembourgish", "Luxemburgish"],
    &["Macedonian"], &["Malagasy"], &["Malay", "Bahasa Melayu"], &["Malayalam"], &["Maltese"], &["Mandarin Chinese", "Mandarin", "Standard Chinese"],
    &["Maori", "Māori"], &["Marathi"], &["Marshallese"], &["Mongolian"], &["Nauruan"], &["Ndebele"], &["Nepali", "Nepalese"], &["Norwegian"],
    &["Occitan"], &["Odia", "Oriya"], &["Old Norse"], &["Ossetian", "Ossetic"], &["Palauan"], &["Papiamento", "Papiamentu"], &["Pashto", "Pushto", "Pashtu"],
    &["Persian", "Farsi", "Iranian Persian"], &["Polish"], &["Portuguese"], &["Punjabi", "Panjabi"], &["Quechua"], &["Romanian", "Moldovan"],
    &["Romansh"], &["Russian"], &["Samoan"], &["Sango"], &["Sanskrit"], &["Sardinian"], &["Scots"], &["Scottish Gaelic"], &["Serbian"],
    &["Serbo-Croatian", "Serbo-Croat"], &["Seychellois Creole"], &["Shona"], &["Sindhi"], &["Sinhala", "Sinhalese", "Singhalese"], &["Slovak"], &["Slovene", "Slovenian"],
    &["Somali"], &["Sotho", "Sesotho", "Southern Sotho"], &["Spanish", "Castilian", "Español"], &["Sundanese"], &["Swahili", "Kiswahili"], &["Swazi", "siSwati"],
    &["Swedish"], &["Syriac"], &["Tagalog"], &["Tajik", "Tajiki"], &["Tamil"], &["Tatar"], &["Telugu"], &["Tetum"], &["Thai"], &["Tibetan"], &["Tigrinya"],
    &["Tok Pisin"], &["Tongan"], &["Tswana", "Setswana"], &["Turkish"], &["Turkmen"], &["Tuvaluan"], &["Twi"], &["Ukrainian"], &["Urdu"],
    &["Uyghur", "Uighur"], &["Uzbek"], &["Vietnamese"], &["Welsh", "Cymraeg"], &["West Frisian", "Frisian"], &["Wolof"], &["Xhosa"], &["Yiddish"],
    &["Yoruba"], &["Zulu", "isiZulu"],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spelling_is_in_two_rows() {
        for table in [COUNTRIES, LANGUAGES] {
            let mut rows: HashMap<String, usize> = HashMap::new();
            for (i, row) in table.iter().enumerate() {
                for form in *row {
                    let first = *rows.entry(normalise(form)).or_insert(i);
                    assert_eq!(
                        first, i,
                        "`{form}` is in the rows of `{}` and `{}`",
                        table[first][0], row[0]
                    );
                }
            }
        }
    }

    #[test]
    fn the_common_name_of_a_country_or_language_is_trained() {
        for (relation, long, trained) in [
            ("P17", "United States of America", "United States"),
            ("P17", "People's Republic of China", "China"),
            ("country", "People’s Republic of China", "China"),
            ("P495", "Republic of Cyprus", "Cyprus"),
            ("P17", "German Democratic Republic", "East Germany"),
            ("P17", "Kingdom of the Netherlands", "Netherlands"),
            ("P17", "Czechia", "Czech Republic"),
            ("P407", "English language", "English"),
            ("P37", "Volapük language", "Volapük"),
        ] {
            assert_eq!(spellings(relation, long)[0], trained, "{long}");
        }
    }

    #[test]
    fn an_object_of_another_relation_has_no_other_spelling() {
        for (relation, name) in [
            ("P17", "Jane Austen"),
            ("P17", "English language"),
            ("P407", "Burma"),
            ("P36", "Kiev"),
            ("title", "Burma"),
            ("P50", "Georgia"),
            ("P740", "United States of America"),
            ("P407", "language"),
        ] {
            assert!(spellings(relation, name).is_empty(), "{relation} {name}");
        }
    }

    #[test]
    fn countries_are_known_as_such() {
        assert!(is_country("the USA"));
        assert!(!is_country("Kiev"));
    }
}
