"""Words by which titles, descriptions and keywords are judged."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FOREIGN_STOP_WORDS = _words(
    """
    de del della delle dei di il lo la le les gli un una uno uma el los las y et und der das die ein eine du
    des con per para por da do dos com em na no al alla allo nel nella su sul aux au avec pour sans e
    """
)
# "die", "do", "no" and the like are English too: one of these alone is no sign of another language.
AMBIGUOUS_STOP_WORDS = _words(
    """
    die do no per com un et la le el e y su al das dos des au na da em lo
    """
)
# Titles of nothing but these say nothing of the picture.
MEANINGLESS = _words(
    """
    untitled unnamed unknown test drawing image picture graphic symbol symbols sign signs icon icons various
    simple new object shape collection template example clip art sample thing things stuff misc set
    """
)
# Words of titles in series whose members have no captions of their own.
SERIES = _words(
    """
    flag flags map maps icon icons iconset logo logos button buttons gradient gradients outline coastline
    border theme emblem emblems gnome etiquette bb rating banner coat crest seal kanji font alphabet letter
    roadsign pinout
    """
)
SERIES_KEYWORDS = _words(
    """
    flag flags map maps logo coastline roadsign map_symbol networksym
    """
)
# Not in a demonstration: unfit for some reader, or a character that isn't its drawer's to give away.
UNSUITABLE = _words(
    """
    sex sexy sexual pantyhose nude naked erotic porn pimp nazi swastika hitler chav drugs suicide
    disney cinderella mickey snoopy garfield simpson simpsons homer pokemon pikachu mario batman superman
    pacman packman tetris hitchhikers
    """
)
# Spellings that an American word list lacks.
BRITISH = _words(
    """
    colour colours coloured colourful theatre centre tyre tyres aluminium armour harbour metre grey doughnut
    plough neighbour jewellery moustache pyjamas aeroplane mould
    """
)
# Keywords about the file, not the picture.
KEYWORD_JUNK = _words(
    """
    hash unsorted icon icons symbol symbols sign signs menu creation openclipart svg mapsym appicon
    networksym clipart clip art image drawing picture vector theme desktop iconset inkscape misc black white
    bw color colour public domain
    """
)
# Names of the library's own folders: they say where the picture was filed, not what it shows.
GENERIC_KEYWORDS = _words(
    """
    animal animals building buildings computer container containers decoration decorations education
    electronics food geography hardware holiday mammal office people person plant plants recreation science
    shape sports tool tools toy transport transportation vehicle vehicles work entertainment equipment
    """
)
# Words by which pictures of one series differ; pictures that differ by these alone are a family.
VARIANTS = _words(
    """
    a an the and of in on with black white colour color coloured colored grey gray red blue green yellow
    pink purple brown beige simple alt alternate another left right top bottom upper lower corner horizontal
    vertical portrait landscape small big large tall taller one two three four five six half cartoon symbol
    sign drawing sketch contour silhouette view
    """
)
KEYWORD_SPELLING = {
    "bodypart": "body part",
    "icecream": "ice cream",
    "musicstuff": "music",
    "weathersym": "weather",
    "latinamerica": "latin america",
    "northamerica": "north america",
    "xmas": "christmas",
    "foods": "food",
}
